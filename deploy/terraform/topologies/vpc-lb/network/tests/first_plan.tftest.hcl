# Nothing exists yet, so no id is known: what the other tests' mocks hide.

mock_provider "google" {}

variables {
  vpn_shared_secrets = {
    fra = { a = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", b = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb" }
    ber = { a = "cccccccccccccccccccccccccccccccc", b = "dddddddddddddddddddddddddddddddd" }
    ams = { a = "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee", b = "ffffffffffffffffffffffffffffffff" }
  }
}

run "a_first_plan_depends_on_nothing_that_only_an_apply_can_tell" {
  command = plan
}
