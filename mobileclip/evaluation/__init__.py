"""Zero-shot classification, retrieval, statistics, the report page."""
