"""The families of vision models that the language engine serves: one class each."""
