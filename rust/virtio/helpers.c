// SPDX-License-Identifier: GPL-2.0
/*
 * Macros and static inlines of virtio that the virtio crate uses.
 * The prefix differs from the kernel's `rust_helper_`, whose names vmlinux exports.
 */
#include <linux/scatterlist.h>
#include <linux/skbuff.h>
#include <linux/uio.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

/* A header, and a payload in one piece. */
#define RVSOCK_FEW_PIECES 2
/* A header, what lies in the head of an sk_buff, its fragments. */
#define RVSOCK_MAX_PIECES (MAX_SKB_FRAGS + 2)

static void rvsock_fill(struct scatterlist *sg, const struct kvec *pieces, unsigned int n)
{
	unsigned int i;

	sg_init_table(sg, n);
	for (i = 0; i < n; i++)
		sg_set_buf(&sg[i], pieces[i].iov_base, pieces[i].iov_len);
}

bool rvsock_helper_virtio_has_feature(const struct virtio_device *vdev, unsigned int bit)
{
	return virtio_has_feature(vdev, bit);
}

void rvsock_helper_virtio_device_ready(struct virtio_device *vdev)
{
	virtio_device_ready(vdev);
}

static noinline int rvsock_add_many(struct virtqueue *vq, const struct kvec *pieces,
				    unsigned int n, void *token)
{
	struct scatterlist sg[RVSOCK_MAX_PIECES];

	if (n > ARRAY_SIZE(sg))
		return -EINVAL;
	rvsock_fill(sg, pieces, n);
	return virtqueue_add_outbuf(vq, sg, n, token, GFP_ATOMIC);
}

int rvsock_helper_virtqueue_add_out(struct virtqueue *vq, const struct kvec *pieces,
				    unsigned int n, void *token)
{
	/* CONFIG_INIT_STACK_ALL_ZERO clears it for each packet, so no larger than most need. */
	struct scatterlist sg[RVSOCK_FEW_PIECES];

	if (n > ARRAY_SIZE(sg))
		return rvsock_add_many(vq, pieces, n, token);
	rvsock_fill(sg, pieces, n);
	return virtqueue_add_outbuf(vq, sg, n, token, GFP_ATOMIC);
}

int rvsock_helper_virtqueue_add_in(struct virtqueue *vq, const struct kvec *pieces,
				   unsigned int n, void *token)
{
	struct scatterlist sg[2];

	if (n > ARRAY_SIZE(sg))
		return -EINVAL;
	rvsock_fill(sg, pieces, n);
	/* Nothing of ours writes to the memory while the device has it. */
	return virtqueue_add_inbuf_cache_clean(vq, sg, n, token, GFP_ATOMIC);
}
