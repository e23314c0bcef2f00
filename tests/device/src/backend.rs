// SPDX-License-Identifier: GPL-2.0
//! The vhost-user side: what QEMU talks to. It hands the rings over, and says when they change.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::Listener;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringMutex};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

pub type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
pub type Vring = VringMutex<Memory>;

/// Seqpacket sockets (section 5.10.3).
const F_SEQPACKET: u64 = 1 << 1;

/// Descriptors in a ring: QEMU asks for 128.
const QUEUE_SIZE: usize = 1024;

/// What is shared with the thread that serves vhost-user.
pub struct Backend {
    cid: u64,
    state: Mutex<State>,
    changed: Condvar,
    /// Counts how often the driver took a ring back. Read with the ring's lock held.
    pub epoch: AtomicU64,
}

#[derive(Default)]
struct State {
    vrings: Vec<Vring>,
    memory: Option<Memory>,
    kicks: u64,
    gone: bool,
}

impl Backend {
    /// Listens at `path`, and serves the first who connects in the background. Says `listening` on
    /// standard output when QEMU may be started.
    pub fn serve(path: &Path, cid: u64) -> anyhow::Result<Arc<Self>> {
        let backend = Arc::new(Self {
            cid,
            state: Mutex::default(),
            changed: Condvar::new(),
            epoch: AtomicU64::new(0),
        });
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new("vsock".to_owned(), backend.clone(), memory)
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let mut listener =
            Listener::new(path, true).with_context(|| format!("{}", path.display()))?;
        println!("listening");
        let served = backend.clone();
        std::thread::spawn(move || {
            let ended = daemon.start(&mut listener).and_then(|()| daemon.wait());
            if let Err(error) = ended {
                eprintln!("vhost-user: {error}");
            }
            served.state().gone = true;
            served.changed.notify_all();
        });
        Ok(backend)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked while it held this left nothing half done.
        self.state.lock().unwrap_or_else(|error| error.into_inner())
    }

    /// Whether QEMU has closed the connection.
    pub fn is_gone(&self) -> bool {
        self.state().gone
    }

    /// Ring number `index`, once the driver has kicked any of them, and the memory it lies in.
    pub fn ring(&self, index: usize) -> Option<(Vring, Memory)> {
        let state = self.state();
        Some((state.vrings.get(index)?.clone(), state.memory.clone()?))
    }

    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Kicks so far.
    pub fn kicks(&self) -> u64 {
        self.state().kicks
    }

    /// Waits until there were more than `kicks`, or for a while. Whether there were.
    pub fn wait_for_kick(&self, kicks: u64, timeout: Duration) -> bool {
        let idle = |state: &mut State| state.kicks == kicks && !state.gone;
        drop(self.changed.wait_timeout_while(self.state(), timeout, idle));
        self.kicks() != kicks
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    /// Receive and transmit queue: QEMU keeps the event queue for itself.
    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | F_SEQPACKET
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.cid.to_le_bytes();
        let start = offset as usize;
        let bytes = config.get(start..start.saturating_add(size as usize));
        bytes.unwrap_or(&[]).to_vec()
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        self.state().memory = Some(memory);
        Ok(())
    }

    fn stop_vring(&self, _index: u32) -> io::Result<()> {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_all();
        Ok(())
    }

    fn handle_event(
        &self,
        _event: u16,
        _set: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        let mut state = self.state();
        if state.vrings.is_empty() {
            state.vrings = vrings.to_vec();
        }
        state.kicks = state.kicks.wrapping_add(1);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }
}
