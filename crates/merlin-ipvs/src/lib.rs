//! IPVS of the Linux kernel over generic netlink.
