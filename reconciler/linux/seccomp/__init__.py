"""Seccomp filters: from the `linux.seccomp` of an OCI config.json to the kernel.

    program = compile.compile(section)                        # pure: struct sock_filter[], ValueError on what is wrong
    listener = load.load(program, compile.flags(section))     # one call: OSError; a descriptor for NOTIFY, else -1

`numbers` are the kernel's tables. `load` is all that a shim imports: whoever makes a container compiles before.
"""
