#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Usage: blocklist.sh <bindings_generated.rs of the kernel> [<our bindings, first pass>]
#
# Prints bindgen options that keep the types of the kernel's `bindings` crate out of ours, so that
# both crates agree on them. Left for us to define: types that the kernel only forward-declares,
# unless we only forward-declare them too (seen in the first pass).
#
# Alternations of 400 names: one option per name makes bindgen 10 times slower, and one option for
# all would be longer than the 128 KiB that execve() allows for a single argument.
# `_bindgen_ty_<n>` is numbered afresh in every run and must never be matched by name.
awk '
/^pub (struct|union|type) / {
	n = $3; sub(/[^A-Za-z0-9_].*/, "", n)
	if (FILENAME == ARGV[1] && n !~ /^_+[Bb]ind[gG]en/ && n !~ /^__IncompleteArrayField/) all[++c] = n
}
/_unused: \[u8; 0\]/ { if (FILENAME == ARGV[1]) theirs[n] = 1; else ours[n] = 1 }
END {
	for (i = 1; i <= c; i++) {
		if ((all[i] in theirs) && !(all[i] in ours)) continue
		s = s (s == "" ? "" : "|") all[i]
		if (++k % 400 == 0) { print "--blocklist-type " s; s = "" }
	}
	if (s != "") print "--blocklist-type " s
}' "$@"
