// SPDX-License-Identifier: GPL-2.0
/*
 * Macros and static inlines of SUNRPC that the sunrpc crate uses.
 * The prefix differs from the kernel's `rust_helper_`, whose names vmlinux exports.
 */
#include <linux/bvec.h>
#include <linux/ipv6.h>
#include <linux/mm.h>
#include <linux/net.h>
#include <linux/sched/mm.h>
#include <linux/sunrpc/clnt.h>
#include <linux/sunrpc/sched.h>
#include <linux/sunrpc/svc_xprt.h>
#include <linux/sunrpc/xprt.h>
#include <linux/workqueue.h>

/* --- memory --- */

void rvsock_helper_sunrpc_get_page(struct page *page)
{
	get_page(page);
}

void rvsock_helper_sunrpc_put_page(struct page *page)
{
	put_page(page);
}

struct page *rvsock_helper_sunrpc_alloc_page(gfp_t gfp)
{
	return alloc_page(gfp);
}

void *rvsock_helper_sunrpc_page_address(const struct page *page)
{
	return page_address(page);
}

/* `memory` is of the linear mapping. */
struct page *rvsock_helper_sunrpc_page_of(const void *memory)
{
	return virt_to_page(memory);
}

void rvsock_helper_sunrpc_bvec_set_virt(struct bio_vec *bvec, void *memory, unsigned int len)
{
	bvec_set_virt(bvec, memory, len);
}

void *rvsock_helper_sunrpc_kmalloc(size_t size, gfp_t gfp)
{
	return kmalloc(size, gfp);
}

unsigned int rvsock_helper_sunrpc_nofs_save(void)
{
	return memalloc_nofs_save();
}

void rvsock_helper_sunrpc_nofs_restore(unsigned int flags)
{
	memalloc_nofs_restore(flags);
}

/* --- work, on the queue that sunrpc itself uses for its sockets --- */

void rvsock_helper_sunrpc_init_work(struct work_struct *work, work_func_t function)
{
	INIT_WORK(work, function);
}

void rvsock_helper_sunrpc_init_delayed_work(struct delayed_work *work, work_func_t function)
{
	INIT_DELAYED_WORK(work, function);
}

bool rvsock_helper_sunrpc_queue(struct work_struct *work)
{
	return queue_work(xprtiod_workqueue, work);
}

bool rvsock_helper_sunrpc_queue_delayed(struct delayed_work *work, unsigned long delay)
{
	return queue_delayed_work(xprtiod_workqueue, work, delay);
}

bool rvsock_helper_sunrpc_requeue_delayed(struct delayed_work *work, unsigned long delay)
{
	return mod_delayed_work(xprtiod_workqueue, work, delay);
}

/* --- transports of servers --- */

void rvsock_helper_svc_xprt_set_flag(struct svc_xprt *xprt, unsigned int flag)
{
	set_bit(flag, &xprt->xpt_flags);
}

void rvsock_helper_svc_xprt_clear_flag(struct svc_xprt *xprt, unsigned int flag)
{
	clear_bit(flag, &xprt->xpt_flags);
}

bool rvsock_helper_svc_xprt_test_flag(struct svc_xprt *xprt, unsigned int flag)
{
	return test_bit(flag, &xprt->xpt_flags);
}

bool rvsock_helper_svc_xprt_test_and_set_flag(struct svc_xprt *xprt, unsigned int flag)
{
	return test_and_set_bit(flag, &xprt->xpt_flags);
}

void rvsock_helper_svc_xprt_name_local(struct svc_xprt *xprt, const struct sockaddr *sa, size_t len)
{
	svc_xprt_set_local(xprt, sa, len);
}

void rvsock_helper_svc_xprt_name_remote(struct svc_xprt *xprt, const struct sockaddr *sa, size_t len)
{
	svc_xprt_set_remote(xprt, sa, len);
}

bool rvsock_helper_svc_xprt_dead(const struct svc_xprt *xprt)
{
	return svc_xprt_is_dead(xprt);
}

void rvsock_helper_svc_rqst_assign_flag(struct svc_rqst *rqstp, unsigned int flag, bool value)
{
	assign_bit(flag, &rqstp->rq_flags, value);
}

/* --- transports of clients --- */

bool rvsock_helper_xprt_is_connected(struct rpc_xprt *xprt)
{
	return xprt_connected(xprt);
}

void rvsock_helper_xprt_mark_bound(struct rpc_xprt *xprt)
{
	xprt_set_bound(xprt);
}

void rvsock_helper_xprt_mark_connected(struct rpc_xprt *xprt)
{
	xprt_set_connected(xprt);
}

void rvsock_helper_xprt_end_connecting(struct rpc_xprt *xprt)
{
	xprt_clear_connecting(xprt);
}

/* What a connection leaves behind in the state of its transport. */
void rvsock_helper_xprt_forget_closing(struct rpc_xprt *xprt)
{
	smp_mb__before_atomic();
	clear_bit(XPRT_CONNECTED, &xprt->state);
	clear_bit(XPRT_CLOSE_WAIT, &xprt->state);
	clear_bit(XPRT_CLOSING, &xprt->state);
	smp_mb__after_atomic();
}

bool rvsock_helper_xprt_is_closing(struct rpc_xprt *xprt)
{
	return test_bit(XPRT_CLOSE_WAIT, &xprt->state);
}

/* --- callbacks at the client --- */

bool rvsock_helper_bc_slot_take(struct rpc_xprt *xprt, int limit)
{
	return atomic_add_unless(&xprt->bc_slot_count, 1, limit);
}

void rvsock_helper_bc_mark_in_use(struct rpc_rqst *req)
{
	set_bit(RPC_BC_PA_IN_USE, &req->rq_bc_pa_state);
}
