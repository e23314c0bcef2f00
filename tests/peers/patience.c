// SPDX-License-Identifier: GPL-2.0
/*
 * Linked into the kernel's vsock programs for kernels that check locks and memory: each step may
 * take ten times as long. On an emulated machine such a kernel needs more than the 10 s of
 * tools/testing/vsock/timeout.h for 2 MiB of small packets (case 40), and more than the 100 ms of
 * vsock_test_zerocopy.c for a completion (case 19), with the C transports too.
 */
#include <poll.h>

#define PATIENCE 10

unsigned int __real_alarm(unsigned int seconds);
unsigned int __wrap_alarm(unsigned int seconds);
int __real_poll(struct pollfd *fds, nfds_t count, int timeout);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout);

unsigned int __wrap_alarm(unsigned int seconds)
{
	return __real_alarm(PATIENCE * seconds);
}

int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout)
{
	return __real_poll(fds, count, timeout < 0 ? timeout : PATIENCE * timeout);
}
