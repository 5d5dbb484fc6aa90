"""Untrusted bytes to text in locked children of a warmed, single-threaded zygote. Fails closed."""
