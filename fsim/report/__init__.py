"""Reports of finished campaigns: one page, its pictures and its tables."""
