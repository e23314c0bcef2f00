// SPDX-License-Identifier: GPL-2.0
/*
 * Functions for Rust in place of macros and static inlines of no subsystem in particular.
 * The prefix differs from the kernel's `rust_helper_`, whose names vmlinux exports.
 */
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

struct workqueue_struct *rvsock_helper_alloc_workqueue(const char *name, bool unbound)
{
	/* WQ_MEM_RECLAIM: file systems may come to write back over what this queue carries. */
	return alloc_workqueue("%s", WQ_MEM_RECLAIM | (unbound ? WQ_UNBOUND : WQ_PERCPU), 0, name);
}

/* What runs in it runs in soft interrupts. */
struct workqueue_struct *rvsock_helper_alloc_bh_workqueue(const char *name)
{
	return alloc_workqueue("%s", WQ_BH | WQ_PERCPU, 0, name);
}

void rvsock_helper_spin_lock_bh(spinlock_t *lock)
{
	spin_lock_bh(lock);
}

bool rvsock_helper_spin_trylock_bh(spinlock_t *lock)
{
	return spin_trylock_bh(lock);
}

void rvsock_helper_spin_unlock_bh(spinlock_t *lock)
{
	spin_unlock_bh(lock);
}

/* Waits until there is memory. */
void *rvsock_helper_kmalloc_nofail(size_t size)
{
	return kmalloc(size, GFP_KERNEL | __GFP_NOFAIL);
}
