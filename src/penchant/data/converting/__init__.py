"""Other projects' layouts, converted to Penchant's."""
