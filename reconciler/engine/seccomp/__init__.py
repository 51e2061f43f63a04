"""What system calls a container may make: the default profile, profiles of specs, and the filters made of them."""
