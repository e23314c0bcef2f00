// SPDX-License-Identifier: GPL-2.0
//! What the tracepoints of the virtio transports show.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::case::{wait_until, Setup, Skip};
use crate::socket::{Kind, Pair};
use crate::{cases, ensure_eq};

cases!("trace":
    both_tracepoints_show_every_packet_of_a_stream,
    both_tracepoints_show_where_messages_end
        => "the flags of a message are set after its packet is traced",
);

const TRACEFS: &str = "/sys/kernel/tracing";
const EVENTS: [&str; 2] = ["virtio_transport_alloc_pkt", "virtio_transport_recv_pkt"];

/// A trace buffer of our own, with the events switched on.
struct Trace(PathBuf);

impl Trace {
    fn new() -> anyhow::Result<Self> {
        let events = Path::new(TRACEFS).join("events/vsock");
        if !events.exists() {
            return Err(Skip(format!("there is no {}", events.display())).into());
        }
        let trace = Self(Path::new(TRACEFS).join("instances/rvsock-selftests"));
        // One may be left of a case that was killed.
        let _ = fs::create_dir(&trace.0);
        trace.switch("0")?;
        fs::write(trace.0.join("trace"), "")?;
        trace.switch("1")?;
        Ok(trace)
    }

    fn switch(&self, value: &str) -> anyhow::Result<()> {
        for event in EVENTS {
            let path = self.0.join("events/vsock").join(event).join("enable");
            fs::write(&path, value).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// What an event said so far, without time and task.
    fn lines(&self, event: &str) -> anyhow::Result<Vec<String>> {
        let text = fs::read_to_string(self.0.join("trace"))?;
        let what = |line: &str| Some(line.split_once(&format!("{event}: "))?.1.to_owned());
        Ok(text.lines().filter_map(what).collect())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.switch("0");
        let _ = fs::remove_dir(&self.0);
    }
}

fn both_tracepoints_show_every_packet_of_a_stream(setup: &Setup) -> anyhow::Result<()> {
    converse(setup, Kind::Stream, "STREAM", ["0x0", "0x0"])
}

fn both_tracepoints_show_where_messages_end(setup: &Setup) -> anyhow::Result<()> {
    converse(setup, Kind::Seqpacket, "SEQPACKET", ["0x3", "0x1"])
}

/// Compares the events of a short conversation with what they should be; `flags` are those of the
/// two packets with payload.
fn converse(setup: &Setup, kind: Kind, name: &str, flags: [&str; 2]) -> anyhow::Result<()> {
    let trace = Trace::new()?;
    let Pair { client, server } = setup.pair(kind)?;
    let (cid, near, far) = (setup.cid, client.port()?, server.port()?);
    client.set_zerocopy()?;
    client.send(b"record", libc::MSG_EOR)?;
    server.recv_exact(6)?;
    client.send(&[0; 5000], libc::MSG_ZEROCOPY)?;
    server.recv_exact(5000)?;
    drop(client);
    super::ending::gone(&server)?;
    drop(server);

    let there = format!("{cid}:{near} -> {cid}:{far}");
    let back = format!("{cid}:{far} -> {cid}:{near}");
    let packets = [
        (&there, 0, "REQUEST", "0x0", false),
        (&back, 0, "RESPONSE", "0x0", false),
        (&there, 6, "RW", flags[0], false),
        (&there, 5000, "RW", flags[1], true),
        (&there, 0, "SHUTDOWN", "0x3", false),
        (&back, 0, "RST", "0x0", false),
    ];
    let received = packets.map(|(ends, len, op, flags, _)| {
        format!("{ends} len={len} type={name} op={op} flags={flags}")
    });
    let zerocopy = packets.map(|packet| packet.4);
    let sent: Vec<_> = received
        .iter()
        .zip(zerocopy)
        .map(|(line, zc)| format!("{line} zcopy={zc}"))
        .collect();
    wait_until("the last packet is received", || {
        trace
            .lines(EVENTS[1])
            .is_ok_and(|lines| lines.iter().any(|line| line.contains("op=RST")))
    })?;
    ensure_eq!(
        of_conversation(trace.lines(EVENTS[0])?, &there, &back),
        sent
    );
    let lines = of_conversation(trace.lines(EVENTS[1])?, &there, &back);
    // How much room there is, is left to the implementation.
    let lines = lines
        .iter()
        .map(|line| line.split(" buf_alloc=").next().unwrap_or(line).to_owned());
    ensure_eq!(lines.collect::<Vec<_>>(), received);
    Ok(())
}

/// The lines of one conversation; when credit is updated is left to the implementation. C sends a
/// second reset when the socket closes.
fn of_conversation(mut lines: Vec<String>, there: &str, back: &str) -> Vec<String> {
    lines.retain(|line| line.starts_with(there) || line.starts_with(back));
    lines.retain(|line| !line.contains("op=CREDIT_UPDATE"));
    lines.dedup_by(|next, line| next.contains("op=RST") && line.contains("op=RST"));
    lines
}
