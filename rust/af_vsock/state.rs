// SPDX-License-Identifier: GPL-2.0

//! What hangs off `vsk->trans`.

use crate::{busy::BacklogReceive, Transport};
use core::{cell::UnsafeCell, ops::Deref};
use kernel::{prelude::*, sync::Arc, types::Opaque};
use rvsock_bindings::bindings;

/// The state that a transport keeps for a socket.
///
/// `vsk->trans` holds a reference to it from `init` to `destruct`, and so does every packet in
/// flight: a completion never meets freed state.
#[repr(C)]
#[pin_data]
pub(crate) struct Attachment<T: Transport> {
    /// What a C transport beside us expects to find in a foreign `vsk->trans`: C casts it without
    /// asking whose it is (`virtio_transport_space_update()` for a listener that failed to
    /// connect before). Initialized as C does, read by nobody of ours.
    #[pin]
    decoy: Opaque<bindings::virtio_vsock_sock>,
    #[pin]
    pub(crate) shared: T::Shared,
    /// Reached only through [`HeldSock::attached`](crate::HeldSock::attached): by who holds the
    /// lock of the socket whose `trans` this is.
    owned: UnsafeCell<T::Owned>,
    /// What the socket did with its backlog before it was ours.
    pub(crate) backlog_receive: Option<BacklogReceive>,
}

// SAFETY: `shared` may be used from any thread; `owned` is `Send` and reached under the lock only.
unsafe impl<T: Transport> Send for Attachment<T> {}
// SAFETY: As above.
unsafe impl<T: Transport> Sync for Attachment<T> {}

impl<T: Transport> Attachment<T> {
    /// Allocates state for `vsk`, whose lock is held. May sleep.
    pub(crate) fn new(
        vsk: *mut bindings::vsock_sock,
        shared: impl PinInit<T::Shared, Error>,
        owned: T::Owned,
    ) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                // SAFETY: `slot` is valid memory for the decoy; `vsk` is only stored.
                decoy <- Opaque::ffi_init(|slot| unsafe { bindings::init_decoy(slot, vsk) }),
                shared <- shared,
                owned: UnsafeCell::new(owned),
                // SAFETY: The socket is valid, and its lock is held.
                backlog_receive: unsafe { (*vsk).sk.sk_backlog_rcv },
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Where the part lies that the socket lock protects.
    pub(crate) fn owned(&self) -> *mut T::Owned {
        self.owned.get()
    }
}

/// The two parts of a socket's state, for as long as its lock is held.
pub struct Attached<'a, T: Transport> {
    /// The part with locks of its own.
    pub shared: &'a T::Shared,
    /// The part that the socket lock protects.
    pub owned: &'a mut T::Owned,
}

/// A counted reference to the [`Transport::Shared`] part of a socket's state.
pub struct StateRef<T: Transport>(pub(crate) Arc<Attachment<T>>);

impl<T: Transport> Clone for StateRef<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Transport> Deref for StateRef<T> {
    type Target = T::Shared;

    #[inline]
    fn deref(&self) -> &T::Shared {
        &self.0.shared
    }
}
