// SPDX-License-Identifier: GPL-2.0
/* For bindgen only, never compiled: the C functions of all crates. */
#include "helpers.c"
#include "../af_vsock/helpers.c"
#include "../virtio/helpers.c"
#include "../vhost/helpers.c"
#include "../socket/helpers.c"
#include "../sunrpc/helpers.c"
