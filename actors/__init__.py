"""Thin Ray shells around the library's objects, one role each. Classes are plain Python until `Pool` spawns them."""
