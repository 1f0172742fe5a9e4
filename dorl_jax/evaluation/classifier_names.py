"""Names of the classifiers that judge vectors; nothing heavy is imported for them."""

TITLES = {
    "random_forest": "random forest",
    "xgboost": "XGBoost",
    "svm_poly": "SVM, poly",
    "svm_linear": "SVM, linear",
    "logistic_regression": "logistic regression",
    "mlp": "MLP",
    "logistic_regression_balanced": "logistic regression, balanced",
    "lda_logistic": "LDA and logistic regression",
}
"""Name of each classifier in a table or picture."""

CLASSIFIERS = tuple(TITLES)
ORIGINAL = CLASSIFIERS[:6]
"""Those of the paper's protocol."""
