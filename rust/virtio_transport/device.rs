// SPDX-License-Identifier: GPL-2.0

//! The device: its parts, and its life from probe to remove.

use crate::{event::Events, link::Guest, receiver::Receiver, transmit::Transmitter};
use af_vsock::{for_each_connected, CID_ANY};
use kernel::{
    impl_has_work, new_mutex, new_work,
    prelude::*,
    sync::{
        atomic::{ordering, Atomic},
        Arc, Mutex,
    },
    time::{delay::fsleep, Delta},
    workqueue::{Work, WorkItem},
};
use rvsock_bindings::{new_bh_spinlock, BhSpinLock, RcuSlot, WorkQueue};
use virtio::{Driver, DriverTable, InQueue, OutQueue, Virtqueue};
use vsock_proto::HEADER_LEN;
use vsock_transport::Engine;

/// virtio device id of a socket device.
const DEVICE_ID: u32 = 19;
/// The device has seqpacket sockets (section 5.10.3).
const F_SEQPACKET: u32 = 1;
/// Where the CID is in the configuration space (section 5.10.4).
const CONFIG_GUEST_CID: u32 = 0;

/// Numbers of the queues (section 5.10.2).
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;

/// The device in use: there is one at most. Empty while it is being set up or torn down, too.
pub(crate) static DEVICE: RcuSlot<Device> = RcuSlot::new();

/// Where work of the module runs that may sleep.
pub(crate) static CLOSE_QUEUE: RcuSlot<WorkQueue> = RcuSlot::new();

/// Where the rest runs, in soft interrupts.
pub(crate) static SOFT_QUEUE: RcuSlot<WorkQueue> = RcuSlot::new();

static IDS: rvsock_bindings::CStatic<[virtio::DeviceId; 2]> = virtio::ids(DEVICE_ID);
static FEATURES: [u32; 1] = [F_SEQPACKET];

/// The C table of the driver. Its name stands in sysfs.
pub(crate) static DRIVER: DriverTable<DeviceDriver> =
    DriverTable::new(c"virtio_transport_rs", &IDS, &FEATURES);

/// A socket device that was set up.
///
/// The ring of each queue is behind a lock of its own and gone once the device was torn down, so
/// that work which comes late finds nothing to do.
#[pin_data]
pub(crate) struct Device {
    device: virtio::Device,
    cid: Atomic<u32>,
    has_seqpacket: bool,
    /// Descriptors of the transmit ring: more pieces do not fit.
    pieces_max: usize,
    #[pin]
    pub(crate) transmitter: BhSpinLock<Transmitter>,
    /// Whether the callback of the transmit ring means nothing: work will look at the ring.
    ignores_callback: Arc<Atomic<bool>>,
    #[pin]
    pub(crate) receiver: BhSpinLock<Option<Receiver>>,
    /// Packets come many at a time: it takes a thread to receive them.
    pub(crate) is_crowded: Atomic<bool>,
    #[pin]
    pub(crate) events: Mutex<Option<Events>>,
    #[pin]
    receive_at_once_work: Work<Self, RECEIVE_AT_ONCE>,
    #[pin]
    receive_work: Work<Self, RECEIVE>,
    #[pin]
    transmit_work: Work<Self, TRANSMIT>,
    #[pin]
    reclaim_work: Work<Self, RECLAIM>,
    #[pin]
    event_work: Work<Self, HANDLE_EVENT>,
    #[pin]
    retry_work: Work<Self, RETRY>,
}

/// Numbers of the work items.
const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;
const RECLAIM: u64 = 2;
const HANDLE_EVENT: u64 = 3;
const RETRY: u64 = 4;
const RECEIVE_AT_ONCE: u64 = 5;

/// How long what was sent may lie in the ring when nobody waits for its end; and if it is little.
const RECLAIM_DELAY: Delta = Delta::from_millis(10);
const RECLAIM_DELAY_LITTLE: Delta = Delta::from_millis(50);

impl_has_work! {
    impl HasWork<Self, RECEIVE_AT_ONCE> for Device { self.receive_at_once_work }
    impl HasWork<Self, RECEIVE> for Device { self.receive_work }
    impl HasWork<Self, TRANSMIT> for Device { self.transmit_work }
    impl HasWork<Self, RECLAIM> for Device { self.reclaim_work }
    impl HasWork<Self, HANDLE_EVENT> for Device { self.event_work }
    impl HasWork<Self, RETRY> for Device { self.retry_work }
}

impl WorkItem<RECEIVE_AT_ONCE> for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.receive_at_once();
    }
}

impl WorkItem<RECEIVE> for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.receive();
    }
}

impl WorkItem<TRANSMIT> for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.transmit_called_back();
    }
}

impl WorkItem<RECLAIM> for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        // Not delayed work: its timer would outlive the queue, which waits for work that was queued,
        // and not for timers.
        let is_little = this.transmitter.lock().holds_little();
        fsleep(if is_little {
            RECLAIM_DELAY_LITTLE
        } else {
            RECLAIM_DELAY
        });
        this.transmit();
    }
}

impl WorkItem<HANDLE_EVENT> for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.handle_events();
    }
}

impl WorkItem<RETRY> for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.retry();
    }
}

impl Device {
    /// CID of this guest.
    pub(crate) fn cid(&self) -> u32 {
        self.cid.load(ordering::Relaxed)
    }

    /// Asks the device for the CID, which changes when the guest is migrated.
    pub(crate) fn update_cid(&self) {
        self.cid.store(read_cid(self.device), ordering::Relaxed);
    }

    /// Whether both sides know seqpacket sockets.
    pub(crate) fn has_seqpacket(&self) -> bool {
        self.has_seqpacket
    }

    /// Most pieces that a packet may consist of.
    pub(crate) fn pieces_max(&self) -> usize {
        self.pieces_max
    }

    /// Runs [`Device::receive`] soon.
    pub(crate) fn schedule_receive(&self) {
        schedule::<RECEIVE>();
    }

    /// Runs [`Device::handle_events`] soon.
    pub(crate) fn schedule_events(&self) {
        schedule::<HANDLE_EVENT>();
    }

    /// Runs [`Device::transmit`] after a while.
    pub(crate) fn schedule_reclaim(&self) {
        schedule::<RECLAIM>();
    }

    /// Runs [`Device::transmit`] soon.
    pub(crate) fn schedule_transmit(&self) {
        schedule::<TRANSMIT>();
    }

    /// Runs [`Device::retry`].
    pub(crate) fn schedule_retry(&self) {
        schedule::<RETRY>();
    }

    /// Finds the queues and makes the device ready, with nothing posted and nothing sent.
    fn set_up(device: virtio::Device) -> Result<Arc<Self>> {
        let [rx, tx, event] = device.find_queues::<DeviceDriver, 3>()?;
        let made = Self::new(device, rx, tx, event);
        if made.is_err() {
            device.delete_queues(device.reset());
        }
        made
    }

    fn new(
        device: virtio::Device,
        rx: Virtqueue,
        tx: Virtqueue,
        event: Virtqueue,
    ) -> Result<Arc<Self>> {
        let cid = read_cid(device);
        let has_seqpacket = device.has_feature(F_SEQPACKET);
        let pieces_max = tx.size();
        let reply_limit = rx.size();
        let ring: OutQueue<_, _, HEADER_LEN> = OutQueue::new(tx)?;
        let ignores_callback = Arc::new(Atomic::new(false), GFP_KERNEL)?;
        let transmitter = Transmitter::new(ring, reply_limit, ignores_callback.clone())?;
        let receiver = Receiver::new(InQueue::new(rx)?);
        let events = Events::new(InQueue::new(event)?);
        Arc::pin_init(
            try_pin_init!(Self {
                device,
                cid: Atomic::new(cid),
                has_seqpacket,
                pieces_max,
                transmitter <- new_bh_spinlock!(transmitter, c"Device::transmitter"),
                ignores_callback,
                receiver <- new_bh_spinlock!(Some(receiver), c"Device::receiver"),
                is_crowded: Atomic::new(false),
                events <- new_mutex!(Some(events), "Device::events"),
                receive_at_once_work <- new_work!("Device::receive_at_once_work"),
                receive_work <- new_work!("Device::receive_work"),
                transmit_work <- new_work!("Device::transmit_work"),
                reclaim_work <- new_work!("Device::reclaim_work"),
                event_work <- new_work!("Device::event_work"),
                retry_work <- new_work!("Device::retry_work"),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Posts buffers: from now on the device has something to say.
    fn start(&self) {
        if !self.refill() {
            self.schedule_retry();
        }
        if let Some(events) = &mut *self.events.lock() {
            events.fill();
        }
        // What was sent since the device could be found waits for it.
        self.transmit();
    }

    /// The device broke the rules: virtio works with one of its queues no more. All connections are
    /// over, and nothing is sent or received until the device is probed again. What it has of our
    /// memory stays its own until it is reset.
    ///
    /// Who receives does this again when it finds out: packets on their way may have made connections.
    ///
    /// Not with the lock of a socket held.
    pub(crate) fn declare_broken(&self) {
        if self.transmitter.lock().refuse() {
            pr_err!("the device is broken: bind it again to use it\n");
        }
        for_each_connected::<Engine<Guest>>();
    }

    /// Takes everything back from the device, and tells all connections.
    fn tear_down(&self) {
        for_each_connected::<Engine<Guest>>();
        // The rings go first, so that work which comes late does not touch them.
        let receiver = self.receiver.lock().take();
        let events = self.events.lock().take();
        let transmit = self.transmitter.lock().stop();
        let reset = self.device.reset();
        if let Some(receiver) = receiver {
            receiver.give_up(&reset);
        }
        if let Some(events) = events {
            events.give_up(&reset);
        }
        // Not under the lock: dropping packets wakes their senders.
        transmit.give_up(&reset);
        self.device.delete_queues(reset);
    }
}

fn read_cid(device: virtio::Device) -> u32 {
    // The upper half is reserved (section 5.10.4).
    u32::try_from(device.read_config_u64(CONFIG_GUEST_CID)).unwrap_or(CID_ANY)
}

/// Queues a work item of the device that may sleep, if there is a device. Any context.
fn schedule<const ID: u64>()
where
    Device: WorkItem<ID, Pointer = Arc<Device>> + kernel::workqueue::HasWork<Device, ID>,
{
    schedule_on::<ID>(&CLOSE_QUEUE);
}

fn schedule_on<const ID: u64>(queue: &RcuSlot<WorkQueue>)
where
    Device: WorkItem<ID, Pointer = Arc<Device>> + kernel::workqueue::HasWork<Device, ID>,
{
    if let Some(device) = DEVICE.get() {
        queue.with(|queue| {
            // Pending already is as good.
            let _ = queue.enqueue::<_, ID>(device);
        });
    }
}

/// The callback of the receive ring. Any context.
fn received() {
    if DEVICE.with(|device| device.is_crowded.load(ordering::Relaxed)) == Some(false) {
        schedule_on::<RECEIVE_AT_ONCE>(&SOFT_QUEUE);
    } else {
        schedule::<RECEIVE>();
    }
}

/// The callback of the transmit ring. Any context.
fn transmitted() {
    let is_ignored = |device: &Device| device.ignores_callback.load(ordering::Relaxed);
    if DEVICE.with(is_ignored) == Some(false) {
        schedule::<TRANSMIT>();
    }
}

/// The driver of the device.
pub(crate) struct DeviceDriver;

/// A device that was torn down for sleep, or whose set-up failed afterwards, is not in `DEVICE`.
fn probe(device: virtio::Device) -> Result {
    if DEVICE.with(|_| ()).is_some() {
        return Err(EBUSY);
    }
    let made = Device::set_up(device)?;
    device.ready();
    if let Err(made) = DEVICE.fill(made.clone()) {
        made.tear_down();
        return Err(EBUSY);
    }
    made.start();
    Ok(())
}

fn remove() {
    if let Some(device) = DEVICE.take() {
        device.tear_down();
    }
}

// SAFETY: `remove` and `freeze` take the one device there is out of its slot and tear it down:
// resets it, and gives up all queues. Work that still holds a reference finds no rings, and reads
// the configuration only together with one.
unsafe impl Driver for DeviceDriver {
    const QUEUES: &'static [&'static CStr] = &[c"rx", c"tx", c"event"];

    fn probe(device: virtio::Device) -> Result {
        probe(device)
    }

    fn remove(_device: virtio::Device) {
        remove()
    }

    fn freeze(_device: virtio::Device) -> Result {
        remove();
        Ok(())
    }

    fn restore(device: virtio::Device) -> Result {
        probe(device)
    }

    fn notified(queue: usize) {
        match queue {
            RX => received(),
            TX => transmitted(),
            EVENT => schedule::<HANDLE_EVENT>(),
            _ => {}
        }
    }
}
