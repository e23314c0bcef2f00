// SPDX-License-Identifier: GPL-2.0

//! The state of a connection: credit both ways, and what was received.

use crate::{busy::Word, chunk::Chunks, deque::Deque};
use af_vsock::SkBuff;
use kernel::{
    prelude::*,
    sync::{
        atomic::{ordering, Atomic},
        barrier::smp_mb,
    },
};
use rvsock_bindings::{new_bh_spinlock, BhSpinLock, Run};
use vsock_proto::{
    max_boundaries, Advertisement, CreditChange, Header, Kind, MessageFlags, ReceiveCredit,
    TransmitCredit, Update,
};

/// What anybody may look at who has a reference to a connection.
///
/// No two of the spinlocks are held together, and nothing sleeps or wakes a socket under them.
#[pin_data]
pub struct Connection {
    #[pin]
    transmit: BhSpinLock<TransmitCredit>,
    #[pin]
    incoming: BhSpinLock<Incoming>,
    /// Bytes that were received and not read; follows `incoming`, for readers without a lock.
    readable_bytes: Atomic<u32>,
    /// Complete messages, likewise.
    readable_messages: Atomic<u32>,
    /// With so many bytes a sleeping reader has enough; `u32::MAX` if none has said so. A reader that
    /// got a part of `SO_RCVLOWAT` waits for the rest of it alone.
    awaited: Atomic<u32>,
    /// Bytes of packets that were handed to the link and have not left it.
    unsent: Atomic<usize>,
    /// What the holder of the socket lock has to do.
    #[pin]
    word: BhSpinLock<Word>,
    /// The peer may use its port for another connection, and the holder of the socket lock does not
    /// know yet.
    is_over: Atomic<bool>,
    /// What was sent last was not the end of a message. Written with the socket lock held.
    is_inside_message: Atomic<bool>,
}

/// What arrived since the reader came last.
pub(crate) struct Incoming {
    credit: ReceiveCredit,
    chunks: Chunks,
    boundaries: Deque<Boundary>,
    /// Bytes that ever arrived.
    end: u64,
}

/// What the reader has taken over, and works on without a spinlock: it belongs to whoever holds
/// the socket lock.
pub struct Reading {
    pub(crate) chunks: Chunks,
    pub(crate) boundaries: Deque<Boundary>,
    /// Bytes that were ever read.
    pub(crate) position: u64,
}

/// The end of a message.
#[derive(Clone, Copy)]
pub(crate) struct Boundary {
    /// Bytes that had arrived with it.
    pub(crate) end: u64,
    /// It ends a record, too (`MSG_EOR`).
    pub(crate) ends_record: bool,
}

/// Payload of a packet that goes into a connection.
pub(crate) enum Data {
    Run(Run),
    Buffer(SkBuff),
}

impl Incoming {
    fn new(window: u32) -> Self {
        Self {
            credit: ReceiveCredit::new(window),
            chunks: Chunks::new(),
            boundaries: Deque::new(),
            end: 0,
        }
    }

    fn push(&mut self, data: Data) -> Result<Option<Data>> {
        let len = data.len()?;
        self.credit.handle_payload(len).map_err(|_| EMSGSIZE)?;
        let left = self.store(data, len).inspect_err(|_| {
            // A reader comes back, without a pause, for what is counted and not there.
            self.credit.refuse_payload(len);
        })?;
        self.end = self.end.saturating_add(u64::from(len));
        Ok(left)
    }

    fn store(&mut self, data: Data, len: u32) -> Result<Option<Data>> {
        if len == 0 {
            return Ok(Some(data));
        }
        Ok(match data {
            Data::Run(run) => self.chunks.push_run(run)?.map(Data::Run),
            Data::Buffer(skb) => self.chunks.push_buffer(skb)?.map(Data::Buffer),
        })
    }

    /// Empty messages take no window, so their number has a limit of its own: `unread` are waiting,
    /// here or with the reader.
    fn end_message(&mut self, ends_record: bool, unread: u32) -> Result {
        if unread >= max_boundaries(self.credit.window()) {
            return Err(EMSGSIZE);
        }
        let boundary = Boundary {
            end: self.end,
            ends_record,
        };
        Ok(self.boundaries.push_back(boundary, GFP_ATOMIC)?)
    }
}

impl Reading {
    pub(crate) const fn new() -> Self {
        Self {
            chunks: Chunks::new(),
            boundaries: Deque::new(),
            position: 0,
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
        self.boundaries.clear();
    }
}

impl Data {
    fn len(&self) -> Result<u32> {
        match self {
            Self::Run(run) => Ok(u32::try_from(run.len())?),
            Self::Buffer(skb) => Ok(skb.len()),
        }
    }
}

impl Connection {
    /// A connection that offers its peer `window` bytes.
    pub(crate) fn new(window: u32) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            transmit <- new_bh_spinlock!(TransmitCredit::new(window), c"Connection::transmit"),
            incoming <- new_bh_spinlock!(Incoming::new(window), c"Connection::incoming"),
            readable_bytes: Atomic::new(0),
            readable_messages: Atomic::new(0),
            awaited: Atomic::new(u32::MAX),
            unsent: Atomic::new(0),
            word <- new_bh_spinlock!(Word::NONE, c"Connection::word"),
            is_over: Atomic::new(false),
            is_inside_message: Atomic::new(false),
        }? Error)
    }

    /// Takes in what a header says about the peer's window.
    pub(crate) fn handle_peer(&self, header: &Header) -> CreditChange {
        self.transmit
            .lock()
            .handle_peer(header.buf_alloc, header.fwd_cnt)
    }

    /// Bytes that may be sent.
    pub(crate) fn writable_bytes(&self) -> u32 {
        self.transmit.lock().available()
    }

    /// Bytes of the largest message that may be sent.
    pub(crate) fn capacity(&self) -> u32 {
        self.transmit.lock().capacity()
    }

    /// Takes credit for up to `wanted` bytes. How much that is, and how much is left.
    pub(crate) fn take_credit(&self, wanted: u32) -> (u32, u32) {
        let mut transmit = self.transmit.lock();
        (transmit.take(wanted), transmit.available())
    }

    /// Returns credit that was not used.
    pub(crate) fn give_credit_back(&self, bytes: u32) {
        if bytes > 0 {
            self.transmit.lock().give_back(bytes);
        }
    }

    /// What the next header tells the peer, who is counted as told; and what it was told before.
    pub(crate) fn advertise(&self) -> (Advertisement, Advertisement) {
        let mut incoming = self.incoming.lock();
        let last = incoming.credit.advertised();
        (incoming.credit.advertise(), last)
    }

    /// That header did not leave. Nothing else was sent meanwhile: the socket lock is held.
    pub(crate) fn retract(&self, last: Advertisement) {
        self.incoming.lock().credit.retract(last);
    }

    /// Changes the window offered to the peer, which also limits what is sent to it. Whether the peer
    /// has to be told, and what it means for writers.
    pub(crate) fn set_window(&self, window: u32) -> (bool, CreditChange) {
        let is_news = self.incoming.lock().credit.set_window(window);
        (is_news, self.transmit.lock().set_limit(window))
    }

    /// How soon the peer has to be told of room, with the reader waiting for `low_water` bytes.
    pub(crate) fn poll_update(&self, kind: Kind, low_water: u32) -> Update {
        // A message is read when it is complete, so until one is, any room may be what it needs.
        let low_water = match kind {
            Kind::Stream => low_water,
            Kind::Seqpacket if self.readable_messages() == 0 => u32::MAX,
            Kind::Seqpacket => 0,
        };
        let capacity = self.capacity();
        self.incoming.lock().credit.poll_update(low_water, capacity)
    }

    /// Queues payload for the reader. Does not sleep. Gives back what was not kept, to be freed or
    /// used again.
    ///
    /// `EMSGSIZE` if the peer was not allowed to send this, `ENOMEM` if there is no memory for it;
    /// either way bytes are lost, and the connection has to end.
    pub(crate) fn enqueue(&self, data: Data, flags: MessageFlags) -> Result<Option<Data>> {
        let mut incoming = self.incoming.lock();
        let left = incoming.push(data)?;
        if flags.contains(MessageFlags::END_OF_MESSAGE) {
            let unread = self.readable_messages();
            incoming.end_message(flags.contains(MessageFlags::END_OF_RECORD), unread)?;
            self.readable_messages.add(1, ordering::Relaxed);
        }
        self.readable_bytes
            .store(incoming.credit.queued(), ordering::Relaxed);
        Ok(left)
    }

    /// Moves what arrived behind what the reader has. Does not sleep.
    pub(crate) fn move_to(&self, reading: &mut Reading) -> Result {
        let mut incoming = self.incoming.lock();
        let incoming = &mut *incoming;
        reading.chunks.append(&mut incoming.chunks)?;
        reading
            .boundaries
            .append(&mut incoming.boundaries, GFP_ATOMIC)?;
        Ok(())
    }

    /// The reader has taken `bytes` and `messages`.
    pub(crate) fn consume(&self, bytes: usize, messages: u32) {
        let mut incoming = self.incoming.lock();
        incoming
            .credit
            .consume(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.readable_messages
            .fetch_sub(messages, ordering::Relaxed);
        self.readable_bytes
            .store(incoming.credit.queued(), ordering::Relaxed);
    }

    /// Forgets what arrived; nobody will read it.
    pub(crate) fn discard(&self) {
        let (chunks, boundaries) = {
            let mut incoming = self.incoming.lock();
            let chunks = core::mem::replace(&mut incoming.chunks, Chunks::new());
            (
                chunks,
                core::mem::replace(&mut incoming.boundaries, Deque::new()),
            )
        };
        // Dropped here, outside the lock: freeing an sk_buff may complete a zero-copy send.
        drop((chunks, boundaries));
        self.readable_bytes.store(0, ordering::Relaxed);
        self.readable_messages.store(0, ordering::Relaxed);
    }

    /// Bytes that can be read.
    pub(crate) fn readable_bytes(&self) -> u32 {
        self.readable_bytes.load(ordering::Relaxed)
    }

    /// Messages that can be read.
    pub(crate) fn readable_messages(&self) -> u32 {
        self.readable_messages.load(ordering::Relaxed)
    }

    /// A reader goes to sleep until there are `bytes`; whether they came just now. Called with the
    /// socket lock held.
    pub(crate) fn reader_waits(&self, bytes: u32) -> bool {
        let awaited = self.awaited.load(ordering::Relaxed).min(bytes);
        self.awaited.store(awaited, ordering::Relaxed);
        // With the barrier in `satisfies_readers`: one of the two sees what the other has stored.
        smp_mb();
        self.readable_bytes() >= awaited
    }

    /// Whether there is enough to wake readers, who say afresh what they wait for if they go back
    /// to sleep. Called by who delivers packets. A message is enough, and less is not.
    pub(crate) fn satisfies_readers(&self, kind: Kind, low_water: u32) -> bool {
        smp_mb();
        match kind {
            Kind::Stream => self.satisfies_stream_readers(low_water),
            Kind::Seqpacket => self.readable_messages() > 0,
        }
    }

    fn satisfies_stream_readers(&self, low_water: u32) -> bool {
        let awaited = self.awaited.load(ordering::Relaxed);
        let satisfied = self.readable_bytes() >= low_water.min(awaited);
        if satisfied {
            // If a reader has said something else meanwhile, that stands.
            let _ = self.awaited.cmpxchg(awaited, u32::MAX, ordering::Relaxed);
        }
        satisfied
    }

    /// What the holder of the socket lock has to do, and has not begun.
    pub(crate) fn word(&self) -> Word {
        *self.word.lock()
    }

    /// Adds to what the holder of the socket lock has to do; returns what that was before.
    pub(crate) fn add_word(&self, more: Word) -> Word {
        let mut word = self.word.lock();
        let both = word.union(more);
        core::mem::replace(&mut *word, both)
    }

    /// The peer may use its port again: from now on nothing may be sent to it.
    pub(crate) fn set_over(&self) {
        self.is_over.store(true, ordering::Relaxed);
    }

    /// Whether nothing may be sent to the peer any more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(ordering::Relaxed)
    }

    /// Whether what was sent last was not the end of a message.
    pub(crate) fn is_inside_message(&self) -> bool {
        self.is_inside_message.load(ordering::Relaxed)
    }

    pub(crate) fn set_inside_message(&self, is_inside: bool) {
        self.is_inside_message.store(is_inside, ordering::Relaxed);
    }

    /// For the holder of the socket lock, who does it now.
    pub(crate) fn take_word(&self) -> Word {
        core::mem::replace(&mut self.word.lock(), Word::NONE)
    }

    /// Bytes that have not left the link.
    pub(crate) fn unsent_bytes(&self) -> usize {
        self.unsent.load(ordering::Relaxed)
    }

    pub(crate) fn add_unsent(&self, bytes: usize) {
        self.unsent.add(bytes, ordering::Relaxed);
    }

    pub(crate) fn settle_unsent(&self, bytes: usize) {
        self.unsent.fetch_sub(bytes, ordering::Full);
    }
}
