# SPDX-License-Identifier: GPL-2.0
# Runs bindgen as the kernel's rust/Makefile does, for headers the kernel's own bindings leave out.
# Included by Kbuild where CONFIG_RUST is set.

bindings-source := $(src)/rust/bindings

# The kernel keeps the list of C flags that libclang must not see in rust/Makefile and exports it to
# nobody, so take that passage from the tree we build against.
$(shell mkdir -p $(obj)/$(generated) && \
	sed -n '/^ifdef CONFIG_CC_IS_CLANG$$/,/^bindgen_c_flags_final/p' $(srctree)/rust/Makefile \
		> $(obj)/$(generated)/kernel_flags.mk)
include $(obj)/$(generated)/kernel_flags.mk
ifeq ($(bindgen_c_flags_final),)
$(error rust/Makefile of $(srctree) does not define bindgen_c_flags_final where it used to)
endif

# `--rust-target` is the kernel's minimum; take it from there too.
kernel-rust-target := $(shell sed -n 's/.*--rust-target \([0-9.]*\).*/\1/p' $(srctree)/rust/Makefile | head -n1)
# `lru_status` carries an attribute that needs a feature modules may not enable; it is the kernel's anyway.
kernel-bindgen-parameters = $(shell grep -Ev '^$(pound)|^$$|lru_status' $(srctree)/rust/bindgen_parameters)

bindgen-common = --rust-target $(kernel-rust-target) \
	--use-core --ctypes-prefix ffi \
	--no-debug '.*' --enable-function-attribute-detection

# Two passes: the first finds the types that we, too, only forward-declare.
quiet_cmd_rvsock_bindgen = BINDGEN $@
      cmd_rvsock_bindgen = set -e; set -f; \
	pass() { $(BINDGEN) $< $(kernel-bindgen-parameters) \
		$$(grep -Ev '^$(pound)|^$$' $(bindings-source)/bindgen_parameters) "$$@" $(bindgen-common) \
		-o $@ -- $(bindgen_c_flags_final) -DMODULE; }; \
	pass $$($(CONFIG_SHELL) $(bindings-source)/blocklist.sh $(objtree)/rust/bindings/bindings_generated.rs); \
	pass $$($(CONFIG_SHELL) $(bindings-source)/blocklist.sh $(objtree)/rust/bindings/bindings_generated.rs $@); \
	sed -Ei 's/pub const RVSOCK_CONST_([a-zA-Z0-9_]*)/pub const \1/g' $@

quiet_cmd_rvsock_bindgen_helpers = BINDGEN $@
      cmd_rvsock_bindgen_helpers = set -f; \
	$(BINDGEN) $< --blocklist-type '.*' --allowlist-var '' --allowlist-function 'rvsock_helper_.*' \
		$(bindgen-common) -o $@ -- $(bindgen_c_flags_final) -DMODULE \
		-Wno-missing-prototypes -Wno-missing-declarations; \
	sed -Ei 's/pub fn rvsock_helper_([a-zA-Z0-9_]*)/$(pound)[link_name="rvsock_helper_\1"]\n    pub fn \1/g' $@

$(obj)/$(generated)/bindings_generated.rs: $(bindings-source)/bindings_helper.h \
	$(bindings-source)/bindgen_parameters $(bindings-source)/bindgen.mk $(bindings-source)/blocklist.sh \
	$(objtree)/rust/bindings/bindings_generated.rs FORCE
	$(call if_changed_dep,rvsock_bindgen)

$(obj)/$(generated)/helpers_generated.rs: $(bindings-source)/helpers_all.c \
	$(bindings-source)/bindgen.mk FORCE
	$(call if_changed_dep,rvsock_bindgen_helpers)

targets += $(generated)/bindings_generated.rs $(generated)/helpers_generated.rs
clean-files += $(generated)/bindings_generated.rs $(generated)/helpers_generated.rs
