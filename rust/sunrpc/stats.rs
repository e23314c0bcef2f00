// SPDX-License-Identifier: GPL-2.0

//! Statistics of a client's transport, as `/proc/self/mountstats` has them.

use crate::jiffies;
use kernel::{seq_file::SeqFile, seq_print};
use rvsock_bindings::bindings;

/// Prints the line of a transport.
///
/// It calls itself `tcp`: mountstats and nfsiostat know the fields of no other stream, and stop at
/// a name that they do not know.
///
/// # Safety
///
/// Both have to be valid.
pub(crate) unsafe fn print(
    xprt: *mut bindings::rpc_xprt,
    file: *mut bindings::seq_file,
    source_port: u32,
) {
    // SAFETY: By the requirements of this function; the numbers may be out of date.
    let (file, stat, idle) = unsafe {
        let idle = if bindings::xprt_is_connected(xprt) {
            jiffies().wrapping_sub((*xprt).last_used)
        } else {
            0
        };
        (SeqFile::from_raw(file), &(*xprt).stat, idle)
    };
    let hertz = crate::seconds(1).max(1);
    seq_print!(
        file,
        "\txprt:\ttcp {} {} {} {} {} {} {} {} {} {} {} {} {}\n",
        source_port,
        stat.bind_count,
        stat.connect_count,
        stat.connect_time / hertz,
        idle / hertz,
        stat.sends,
        stat.recvs,
        stat.bad_xids,
        stat.req_u,
        stat.bklog_u,
        stat.max_slots,
        stat.sending_u,
        stat.pending_u
    );
}
