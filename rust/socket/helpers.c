// SPDX-License-Identifier: GPL-2.0
/*
 * Macros and static inlines of sockets that the socket crate uses.
 * The prefix differs from the kernel's `rust_helper_`, whose names vmlinux exports.
 */
#include <linux/net.h>
#include <linux/poll.h>
#include <linux/rcupdate.h>
#include <linux/sockptr.h>
#include <linux/vm_sockets.h>
#include <net/af_vsock.h>
#include <net/sock.h>

int rvsock_helper_socket_set_u64(struct socket *sock, int option, u64 value)
{
	return sock->ops->setsockopt(sock, AF_VSOCK, option, KERNEL_SOCKPTR(&value), sizeof(value));
}

bool rvsock_helper_socket_is_writable(struct socket *sock)
{
	return sock->ops->poll(NULL, sock, NULL) & EPOLLOUT;
}

/* Neither end will send or receive any more, or one of them will not. The socket lock is held, or it is a look. */
bool rvsock_helper_socket_is_over(struct sock *sk)
{
	return READ_ONCE(sk->sk_state) != TCP_ESTABLISHED || READ_ONCE(sk->sk_shutdown) ||
	       READ_ONCE(vsock_sk(sk)->peer_shutdown);
}


void rvsock_helper_socket_lock(struct sock *sk)
{
	lock_sock(sk);
}

/* A macro where no task can be preempted in the kernel. */
void rvsock_helper_socket_synchronize_tasks(void)
{
	synchronize_rcu_tasks();
}
