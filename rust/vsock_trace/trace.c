// SPDX-License-Identifier: GPL-2.0
/*
 * The tracepoints of the virtio transports, `vsock:virtio_transport_{alloc,recv}_pkt`.
 *
 * A module of their own, because three modules use them: an event that each of them defined would
 * exist three times under one name, and tracefs would show one of them.
 */
#include <linux/module.h>
#include <linux/virtio_vsock.h>

#define CREATE_TRACE_POINTS
#include <trace/events/vsock_virtio_transport_common.h>

EXPORT_TRACEPOINT_SYMBOL_GPL(virtio_transport_alloc_pkt);
EXPORT_TRACEPOINT_SYMBOL_GPL(virtio_transport_recv_pkt);

MODULE_LICENSE("GPL");
MODULE_AUTHOR("The rvsock developers");
MODULE_DESCRIPTION("Tracepoints of the Rust virtio vsock transports");
