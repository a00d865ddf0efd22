"""Hand a student on: a Hugging Face repository or folder in the layouts that other tools load as they are."""
