"""What lists, pages and reports say of methods: their cards, and how they were held against their authors' code."""
