"""The agent: runs inside the guest on Python 3.9 or newer, standard library only.

It starts while an emulated machine boots, where an import costs ten times what it costs elsewhere.
So it takes sockets, threads and signals from the C modules (`_socket`, `_thread`, `_signal`) below the
standard library's wrappers, and leaves out json, subprocess and everything built on `re` or `enum`.
"""
