// SPDX-License-Identifier: GPL-2.0
/*
 * Macros and static inlines of the socket layer that the af_vsock crate uses.
 * The prefix differs from the kernel's `rust_helper_`, whose names vmlinux exports.
 */
#include <linux/nsproxy.h>
#include <linux/sched.h>
#include <linux/skbuff.h>
#include <linux/virtio_vsock.h>
#include <linux/workqueue.h>
#include <net/af_vsock.h>
#include <net/net_namespace.h>
#include <net/sock.h>
#include <trace/events/vsock_virtio_transport_common.h>

/* --- sockets --- */

struct net *rvsock_helper_sock_net(const struct sock *sk)
{
	return sock_net(sk);
}

void rvsock_helper_sock_hold(struct sock *sk)
{
	sock_hold(sk);
}

void rvsock_helper_sock_put(struct sock *sk)
{
	sock_put(sk);
}

bool rvsock_helper_sock_flag(const struct sock *sk, enum sock_flags flag)
{
	return sock_flag(sk, flag);
}

void rvsock_helper_sock_set_flag(struct sock *sk, enum sock_flags flag)
{
	sock_set_flag(sk, flag);
}

void rvsock_helper_sock_reset_flag(struct sock *sk, enum sock_flags flag)
{
	sock_reset_flag(sk, flag);
}

bool rvsock_helper_sk_acceptq_is_full(const struct sock *sk)
{
	return sk_acceptq_is_full(sk);
}

int rvsock_helper_sock_rcvlowat(const struct sock *sk)
{
	return sock_rcvlowat(sk, 0, INT_MAX);
}

void rvsock_helper_lock_child(struct sock *sk)
{
	lock_sock_nested(sk, SINGLE_DEPTH_NESTING);
}

/*
 * Takes the socket lock, or else the spinlock inside it, with which nobody can give it back: then
 * this is false. In the first case as lock_sock_nested() does, which waits.
 */
bool rvsock_helper_lock_sock_or_slock(struct sock *sk)
{
	spin_lock_bh(&sk->sk_lock.slock);
	if (sock_owned_by_user_nocheck(sk))
		return false;
	sk->sk_lock.owned = 1;
	spin_unlock_bh(&sk->sk_lock.slock);
	mutex_acquire(&sk->sk_lock.dep_map, 0, 1, _RET_IP_);
	return true;
}

/* Takes the spinlock inside the socket lock; whether somebody holds the socket lock. */
bool rvsock_helper_lock_slock(struct sock *sk)
{
	spin_lock_bh(&sk->sk_lock.slock);
	return sock_owned_by_user_nocheck(sk);
}

void rvsock_helper_unlock_slock(struct sock *sk)
{
	spin_unlock_bh(&sk->sk_lock.slock);
}

/* With the spinlock inside the socket lock held. */
bool rvsock_helper_add_to_backlog(struct sock *sk)
{
	struct sk_buff *skb = alloc_skb(0, GFP_ATOMIC);

	if (!skb)
		return false;
	__sk_add_backlog(sk, skb);
	return true;
}

void rvsock_helper_set_backlog_rcv(struct sock *sk,
				   int (*receive)(struct sock *sk, struct sk_buff *skb))
{
	spin_lock_bh(&sk->sk_lock.slock);
	sk->sk_backlog_rcv = receive;
	spin_unlock_bh(&sk->sk_lock.slock);
}

void rvsock_helper_stay_awake(void)
{
	__set_current_state(TASK_RUNNING);
}

/* sock_def_readable(), which is not exported, and which a socket that is not locked may have replaced. */
void rvsock_helper_wake_readers(struct sock *sk)
{
	struct socket_wq *wq;

	rcu_read_lock();
	wq = rcu_dereference(sk->sk_wq);
	if (skwq_has_sleeper(wq))
		wake_up_interruptible_sync_poll(&wq->wait, EPOLLIN | EPOLLPRI |
						EPOLLRDNORM | EPOLLRDBAND);
	sk_wake_async_rcu(sk, SOCK_WAKE_WAITD, POLL_IN);
	rcu_read_unlock();
}

/*
 * sock_def_write_space(), which wakes nobody while packets of the socket that were sent and not taken
 * back take half of sk_sndbuf. Room to send is what the peer has.
 */
void rvsock_helper_wake_writers(struct sock *sk)
{
	struct socket_wq *wq;

	rcu_read_lock();
	wq = rcu_dereference(sk->sk_wq);
	if (skwq_has_sleeper(wq))
		wake_up_interruptible_sync_poll(&wq->wait, EPOLLOUT |
						EPOLLWRNORM | EPOLLWRBAND);
	sk_wake_async_rcu(sk, SOCK_WAKE_SPACE, POLL_OUT);
	rcu_read_unlock();
}

bool rvsock_helper_current_is_exiting(void)
{
	return current->flags & PF_EXITING;
}

/* --- vsock sockets --- */

struct net *rvsock_helper_get_current_net(void)
{
	return get_net(current->nsproxy->net_ns);
}

void rvsock_helper_put_net(struct net *net)
{
	put_net(net);
}

bool rvsock_helper_vsock_net_check_mode(struct net *a, struct net *b)
{
	return vsock_net_check_mode(a, b);
}

bool rvsock_helper_vsock_net_mode_global(struct vsock_sock *vsk)
{
	return vsock_net_mode_global(vsk);
}

/* As virtio_transport_do_socket_init() leaves it: whatever may look at it finds locks and a queue. */
void rvsock_helper_init_decoy(struct virtio_vsock_sock *decoy, struct vsock_sock *vsk)
{
	memset(decoy, 0, sizeof(*decoy));
	decoy->vsk = vsk;
	spin_lock_init(&decoy->rx_lock);
	spin_lock_init(&decoy->tx_lock);
	skb_queue_head_init(&decoy->rx_queue);
}

void rvsock_helper_schedule_close(struct vsock_sock *vsk, struct workqueue_struct *queue,
				  work_func_t run, unsigned long delay)
{
	INIT_DELAYED_WORK(&vsk->close_work, run);
	vsk->close_work_scheduled = true;
	queue_delayed_work(queue, &vsk->close_work, delay);
}

bool rvsock_helper_cancel_close(struct vsock_sock *vsk)
{
	return cancel_delayed_work(&vsk->close_work);
}

/* --- packets --- */

/* Small payload shares the head; more would round it up to the next power of two. */
static bool shares_head(unsigned int len)
{
	return len <= SKB_WITH_OVERHEAD(PAGE_SIZE);
}

static struct sk_buff *alloc_in_head(unsigned int len, gfp_t gfp)
{
	struct sk_buff *skb = alloc_skb(len, gfp);

	if (skb)
		skb_put(skb, len);
	return skb;
}

/* The payload in the head, which has room for more. */
struct sk_buff *rvsock_helper_alloc_with_room(unsigned int len, unsigned int room, gfp_t gfp)
{
	struct sk_buff *skb = alloc_skb(max(len, room), gfp);

	if (skb)
		skb_put(skb, len);
	return skb;
}

unsigned int rvsock_helper_skb_tailroom(const struct sk_buff *skb)
{
	return skb_tailroom(skb);
}

/* The whole payload in the head, or in pages, in runs of up to 2^order of them. */
struct sk_buff *rvsock_helper_alloc_payload(unsigned int len, int order, gfp_t gfp)
{
	struct sk_buff *skb;
	int err;

	if (shares_head(len))
		return alloc_in_head(len, gfp);
	skb = alloc_skb_with_frags(0, len, order, &err, gfp);
	if (!skb)
		return NULL;
	skb->data_len = len;
	skb->len = len;
	return skb;
}

/* The whole payload in one piece; NULL if there is no such piece to be had without effort. */
struct sk_buff *rvsock_helper_alloc_contiguous(unsigned int len, gfp_t gfp)
{
	unsigned int order = get_order(len);
	struct sk_buff *skb;
	struct page *page;

	if (shares_head(len))
		return alloc_in_head(len, gfp);
	page = alloc_pages(order ? gfp | __GFP_COMP | __GFP_NORETRY | __GFP_NOWARN : gfp, order);
	if (!page)
		return NULL;
	skb = alloc_skb(0, gfp);
	if (!skb) {
		__free_pages(page, order);
		return NULL;
	}
	skb_add_rx_frag(skb, 0, page, 0, len, PAGE_SIZE << order);
	return skb;
}

bool rvsock_helper_skb_is_nonlinear(const struct sk_buff *skb)
{
	return skb_is_nonlinear(skb);
}

void rvsock_helper_skb_orphan(struct sk_buff *skb)
{
	skb_orphan(skb);
}

void *rvsock_helper_pskb_pull(struct sk_buff *skb, unsigned int len)
{
	return pskb_pull(skb, len);
}

unsigned int rvsock_helper_skb_pieces(const struct sk_buff *skb)
{
	return skb_shinfo(skb)->nr_frags + (skb_headlen(skb) ? 1 : 0);
}

/* The address and length of piece `i`: what lies in the head, if anything, then the fragments. */
void *rvsock_helper_skb_piece(const struct sk_buff *skb, unsigned int i, unsigned int *len)
{
	const skb_frag_t *frag;

	if (skb_headlen(skb)) {
		if (i == 0) {
			*len = skb_headlen(skb);
			return skb->data;
		}
		i--;
	}
	frag = &skb_shinfo(skb)->frags[i];
	*len = skb_frag_size(frag);
	/* Not skb_frag_address(): the page behind an offset beyond the first page is meant. */
	return page_to_virt(skb_frag_page(frag)) + skb_frag_off(frag);
}

/* --- pages that are referred to (MSG_SPLICE_PAGES) --- */

/*
 * How much to copy of the next `len` bytes of a message, before the rest is referred to: pieces
 * shorter than `shortest`, `most` bytes at most. Negative if none of it is to be referred to: nobody
 * asked for that, it is in memory without references, or it would keep more than twice its size.
 */
long rvsock_helper_msg_splice_front(const struct msghdr *msg, size_t len, size_t shortest,
				    size_t most)
{
	const struct iov_iter *iter = &msg->msg_iter;
	size_t front = 0, behind = 0, pages = 0, skip = iter->iov_offset;
	const struct bio_vec *bvec;

	if (!(msg->msg_flags & MSG_SPLICE_PAGES) || !iov_iter_is_bvec(iter))
		return -1;
	for (bvec = iter->bvec; front + behind < min(len, iter->count); bvec++, skip = 0) {
		size_t piece = min(bvec->bv_len - skip, min(len, iter->count) - front - behind);
		size_t offset = bvec->bv_offset + skip;

		if (!behind && piece < shortest && front + piece <= most) {
			front += piece;
			continue;
		}
		if (!sendpages_ok(bvec->bv_page, offset_in_page(offset) + piece, offset))
			return -1;
		behind += piece;
		pages += DIV_ROUND_UP(offset_in_page(offset) + piece, PAGE_SIZE);
	}
	return behind && behind >= pages * PAGE_SIZE / 2 ? front : -1;
}

/* Refers to the next `len` bytes of an iterator, or to the first of them; how many. */
ssize_t rvsock_helper_skb_splice(struct sk_buff *skb, struct iov_iter *from, size_t len)
{
	ssize_t spliced;

	/* Or sums are computed, which nobody looks at. */
	skb->ip_summed = CHECKSUM_UNNECESSARY;
	spliced = skb_splice_from_iter(skb, from, len);
	if (spliced > 0) {
		/* Whoever has the pages may write to them. */
		skb_shinfo(skb)->flags |= SKBFL_SHARED_FRAG;
		/* What freeing the sk_buff gives back. */
		refcount_add(spliced, &skb->sk->sk_wmem_alloc);
	}
	return spliced;
}

/* --- zero copy --- */

void rvsock_helper_skb_zcopy_set(struct sk_buff *skb, struct ubuf_info *uarg)
{
	skb_zcopy_set(skb, uarg, NULL);
}

void rvsock_helper_net_zcopy_put(struct ubuf_info *uarg)
{
	net_zcopy_put(uarg);
}

void rvsock_helper_net_zcopy_put_abort(struct ubuf_info *uarg)
{
	net_zcopy_put_abort(uarg, true);
}

void rvsock_helper_msgzc_mark_copied(struct ubuf_info *uarg)
{
	uarg_to_msgzc(uarg)->zerocopy = 0;
}

/* --- tracepoints --- */

bool rvsock_helper_trace_alloc_pkt_enabled(void)
{
	return trace_virtio_transport_alloc_pkt_enabled();
}

void rvsock_helper_trace_alloc_pkt(const struct virtio_vsock_hdr *hdr, bool zcopy)
{
	trace_virtio_transport_alloc_pkt(le64_to_cpu(hdr->src_cid), le32_to_cpu(hdr->src_port),
					 le64_to_cpu(hdr->dst_cid), le32_to_cpu(hdr->dst_port),
					 le32_to_cpu(hdr->len), le16_to_cpu(hdr->type),
					 le16_to_cpu(hdr->op), le32_to_cpu(hdr->flags), zcopy);
}

bool rvsock_helper_trace_recv_pkt_enabled(void)
{
	return trace_virtio_transport_recv_pkt_enabled();
}

void rvsock_helper_trace_recv_pkt(const struct virtio_vsock_hdr *hdr)
{
	trace_virtio_transport_recv_pkt(le64_to_cpu(hdr->src_cid), le32_to_cpu(hdr->src_port),
					le64_to_cpu(hdr->dst_cid), le32_to_cpu(hdr->dst_port),
					le32_to_cpu(hdr->len), le16_to_cpu(hdr->type),
					le16_to_cpu(hdr->op), le32_to_cpu(hdr->flags),
					le32_to_cpu(hdr->buf_alloc), le32_to_cpu(hdr->fwd_cnt));
}
