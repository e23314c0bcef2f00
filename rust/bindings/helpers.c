// SPDX-License-Identifier: GPL-2.0
/*
 * Functions for Rust in place of macros and static inlines of no subsystem in particular.
 * The prefix differs from the kernel's `rust_helper_`, whose names vmlinux exports.
 */
#include <linux/workqueue.h>

struct workqueue_struct *rvsock_helper_alloc_workqueue(const char *name, bool unbound)
{
	/* WQ_MEM_RECLAIM: file systems may come to write back over what this queue carries. */
	return alloc_workqueue("%s", WQ_MEM_RECLAIM | (unbound ? WQ_UNBOUND : WQ_PERCPU), 0, name);
}
