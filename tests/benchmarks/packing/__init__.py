"""Packed rows against one example per row and against buckets, at equal memory."""
