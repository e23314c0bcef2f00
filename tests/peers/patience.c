// SPDX-License-Identifier: GPL-2.0
/*
 * Linked into the kernel's vsock programs for kernels that check locks and memory: each step may
 * take ten times as long. On an emulated machine such a kernel needs more than the 10 s of
 * tools/testing/vsock/timeout.h for 2 MiB of small packets (case 40), with the C transports too.
 */
unsigned int __real_alarm(unsigned int seconds);
unsigned int __wrap_alarm(unsigned int seconds);

unsigned int __wrap_alarm(unsigned int seconds)
{
	return __real_alarm(10 * seconds);
}
