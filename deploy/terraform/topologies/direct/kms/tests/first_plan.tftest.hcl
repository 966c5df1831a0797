# Nothing exists yet, so no id is known: what the other tests' mocks hide.

mock_provider "google" {}

run "a_first_plan_depends_on_nothing_that_only_an_apply_can_tell" {
  command = plan
}
