/* SPDX-License-Identifier: GPL-2.0 */
/* What bindgen reads. */

/* Forward references to enums first, as in rust/bindings/bindings_helper.h of the kernel. */
#include <linux/hrtimer_types.h>

#include <linux/bvec.h>
#include <linux/moduleparam.h>
#include <linux/seq_file.h>
#include <linux/skbuff.h>
#include <linux/sunrpc/bc_xprt.h>
#include <linux/sunrpc/clnt.h>
#include <linux/sunrpc/svc.h>
#include <linux/sunrpc/svc_xprt.h>
#include <linux/sunrpc/xprt.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_vsock.h>
#include <linux/workqueue.h>
#include <net/af_vsock.h>
#include <net/sock.h>
#include <uapi/linux/vhost.h>
#include <uapi/linux/virtio_vsock.h>
#include <uapi/linux/vsockmon.h>

/* Private header: found through -I./include/uapi, as <../../drivers/base/base.h> is upstream. */
#include <../../drivers/vhost/vhost.h>

/* Macros that bindgen cannot evaluate. */
const gfp_t RVSOCK_CONST_GFP_KERNEL = GFP_KERNEL;
const u32 RVSOCK_CONST_RCV_SHUTDOWN = RCV_SHUTDOWN;
const u32 RVSOCK_CONST_SEND_SHUTDOWN = SEND_SHUTDOWN;
const u32 RVSOCK_CONST_SHUTDOWN_MASK = SHUTDOWN_MASK;
const u32 RVSOCK_CONST_MAX_SKB_FRAGS = MAX_SKB_FRAGS;
const u32 RVSOCK_CONST_PF_EXITING = PF_EXITING;
const gfp_t RVSOCK_CONST_GFP_SUNRPC_PAGE = GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN;
