"""Ray sessions and placement. Imports Ray and nothing of ours."""
