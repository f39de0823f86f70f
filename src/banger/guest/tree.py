"""Trees of files as tar streams: packed and unpacked alike on the host and in the guest. Standard library only."""
