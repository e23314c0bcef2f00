// SPDX-License-Identifier: GPL-2.0
/*
 * Macros and static inlines of vhost that the vhost crate uses.
 * The prefix differs from the kernel's `rust_helper_`, whose names vmlinux exports.
 */
#include <linux/mutex.h>
#include <linux/uio.h>
/* Private header: found through -I./include/uapi, as <../../drivers/base/base.h> is upstream. */
#include <../../drivers/vhost/vhost.h>

static const int rvsock_vhost_bits[] = { VHOST_FEATURES, VIRTIO_F_ACCESS_PLATFORM };

u64 rvsock_helper_vhost_features(void)
{
	return VHOST_FEATURES_U64(rvsock_vhost_bits, 0);
}

void rvsock_helper_vhost_lock_device(struct vhost_dev *dev)
{
	mutex_lock(&dev->mutex);
}

void rvsock_helper_vhost_unlock_device(struct vhost_dev *dev)
{
	mutex_unlock(&dev->mutex);
}

void rvsock_helper_vhost_lock_vq(struct vhost_virtqueue *vq)
{
	mutex_lock(&vq->mutex);
}

void rvsock_helper_vhost_unlock_vq(struct vhost_virtqueue *vq)
{
	mutex_unlock(&vq->mutex);
}

bool rvsock_helper_vhost_logs(struct vhost_virtqueue *vq)
{
	return vhost_has_feature(vq, VHOST_F_LOG_ALL);
}

void rvsock_helper_vhost_set_head(struct vhost_virtqueue *vq, unsigned int i, u32 head, u32 len)
{
	vq->heads[i].id = cpu_to_vhost32(vq, head);
	vq->heads[i].len = cpu_to_vhost32(vq, len);
}

size_t rvsock_helper_vhost_iov_length(const struct iovec *iov, unsigned long count)
{
	return iov_length(iov, count);
}

void rvsock_helper_vhost_vq_error(struct vhost_virtqueue *vq)
{
	if (vq->error_ctx)
		eventfd_signal(vq->error_ctx);
}
