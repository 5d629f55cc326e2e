"""A picture of a trained model: which tasks use which experts, and what each subnet would weigh."""
