mock_provider "google" {
  source          = "../../mocks"
  override_during = plan
}

variables {
  project_id      = "net-example"
  name            = "ekm-a1-fra"
  region          = "europe-west3"
  zones           = ["europe-west3-a", "europe-west3-b", "europe-west3-c"]
  subnetwork      = "projects/net-example/regions/europe-west3/subnetworks/ekm-a1-proxies"
  service_account = "ekm-a1-proxy@net-example.iam.gserviceaccount.com"
  image           = "europe-docker.pkg.dev/net-example/ekm/nginx@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  frontends       = ["10.20.0.11", "10.20.0.12", "10.20.0.13"]
}

run "the_machines_heal_by_liveness_alone" {
  command = plan

  assert {
    condition     = google_compute_health_check.alive.http_health_check[0].request_path == "/livez" && google_compute_health_check.alive.http_health_check[0].port == 8080
    error_message = "An outage at the site must not have all proxies made anew."
  }
  assert {
    condition     = google_compute_region_instance_group_manager.this.auto_healing_policies[0].health_check == google_compute_health_check.alive.id
    error_message = "Healing goes by that check."
  }
}

run "there_are_never_fewer_machines_than_before" {
  command = plan

  assert {
    condition     = google_compute_region_instance_group_manager.this.target_size == 3 && google_compute_region_instance_group_manager.this.update_policy[0].max_unavailable_fixed == 0
    error_message = "None is taken away before its successor is there."
  }
  assert {
    condition     = google_compute_region_instance_group_manager.this.update_policy[0].max_surge_fixed == length(google_compute_region_instance_group_manager.this.distribution_policy_zones)
    error_message = "A regional group takes a surge of its number of zones at least."
  }
}

run "the_configuration_passes_tls_to_the_frontends_and_asks_them_whether_they_are_ready" {
  command = plan

  assert {
    condition     = alltrue([for address in var.frontends : length(regexall("server ${address}:8443 ", output.nginx_conf)) >= 2])
    error_message = "Each frontend is there, for traffic and for health checks."
  }
  assert {
    condition     = can(regex("listen 443[ ;]", output.nginx_conf)) && can(regex("listen 8080[ ;]", output.nginx_conf)) && output.health_port == 8080
    error_message = "The forwarding rule's port, and the one for health checks."
  }
  assert {
    condition     = strcontains(output.nginx_conf, "proxy_connect_timeout 40ms;") && strcontains(output.nginx_conf, "worker_connections 16384;")
    error_message = "Time-out and connections are handed on."
  }
  assert {
    condition     = !can(regex("proxy_protocol on;", output.nginx_conf)) && toset([for server in regexall("server ([0-9.]+):", output.nginx_conf) : server[0]]) == toset(var.frontends)
    error_message = "No PROXY protocol, and no other site, unless it is asked for."
  }
  assert {
    condition     = tonumber(regex("proxy_timeout ([0-9]+)s;", output.nginx_conf)[0]) < 600
    error_message = "Google's load balancer forgets a silent connection after 600 s: nginx has to close it before."
  }
  assert {
    condition     = strcontains(output.nginx_conf, "location = /livez") && strcontains(output.nginx_conf, "location = /readyz")
    error_message = "Both checks are answered, each at its path."
  }
}

run "the_machine_starts_nginx_from_user_data" {
  command = plan

  assert {
    condition     = startswith(google_compute_instance_template.this.metadata["user-data"], "#cloud-config\n")
    error_message = "cloud-init reads it only with this first line."
  }
  assert {
    condition     = yamldecode(google_compute_instance_template.this.metadata["user-data"]).write_files[0].content == output.nginx_conf
    error_message = "It is YAML, and has the configuration."
  }
  assert {
    condition     = strcontains(yamldecode(google_compute_instance_template.this.metadata["user-data"]).write_files[1].content, "--dports 443,8080 ") && endswith(trimspace(regex("(?m)^ExecStart=.*\\\\$\\s+.*\\\\$\\s+.*$", yamldecode(google_compute_instance_template.this.metadata["user-data"]).write_files[1].content)), var.image)
    error_message = "The unit admits both ports and runs the image."
  }
  assert {
    condition     = length(google_compute_instance_template.this.network_interface[0].access_config) == 0 && google_compute_instance_template.this.tags == toset(["ekm-proxy"])
    error_message = "No external address; the tag that the firewall names."
  }
}

run "another_site_can_stand_by" {
  command = plan
  variables { backup_frontends = ["10.30.0.11"] }

  assert {
    condition     = can(regex("server 10\\.30\\.0\\.11:8443 .*backup;", output.nginx_conf))
    error_message = "As a backup in nginx."
  }
}

run "proxy_protocol_can_be_asked_for" {
  command = plan
  variables { proxy_protocol = true }

  assert {
    condition     = strcontains(output.nginx_conf, "proxy_protocol on;")
    error_message = "It is handed on."
  }
}

run "a_frontend_cannot_back_itself_up" {
  command = plan
  variables { backup_frontends = ["10.20.0.11"] }
  expect_failures = [var.backup_frontends]
}

run "a_backup_is_named_by_address" {
  command = plan
  variables { backup_frontends = ["ekm-1.example.com"] }
  expect_failures = [var.backup_frontends]
}

run "a_frontend_is_named_by_address" {
  command = plan
  variables { frontends = ["ekm-1.example.com", "ekm-2.example.com"] }
  expect_failures = [var.frontends]
}

run "one_frontend_is_refused" {
  command = plan
  variables { frontends = ["10.20.0.11"] }
  expect_failures = [var.frontends]
}

run "two_machines_are_refused" {
  command = plan
  variables { instances = 2 }
  expect_failures = [var.instances]
}

run "an_image_by_tag_is_refused" {
  command = plan
  variables { image = "europe-docker.pkg.dev/net-example/ekm/nginx:1.27" }
  expect_failures = [var.image]
}

run "an_image_from_the_internet_is_refused" {
  command = plan
  variables { image = "docker.io/library/nginx@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" }
  expect_failures = [var.image]
}

run "another_system_is_refused" {
  command = plan
  variables { boot_image = "projects/debian-cloud/global/images/family/debian-12" }
  expect_failures = [var.boot_image]
}

run "a_connect_time_out_without_room_for_a_second_try_is_refused" {
  command = plan
  variables { connect_timeout_ms = 100 }
  expect_failures = [var.connect_timeout_ms]
}

run "a_frontends_port_of_zero_is_refused" {
  command = plan
  variables { frontend_port = 0 }
  expect_failures = [var.frontend_port]
}

run "the_health_port_is_taken" {
  command = plan
  variables { port = 8080 }
  expect_failures = [var.port]
}

run "too_many_connections_for_the_open_files_are_refused" {
  command = plan
  variables { worker_connections = 65536 }
  expect_failures = [var.worker_connections]
}

run "one_zone_is_refused" {
  command = plan
  variables { zones = ["europe-west3-a"] }
  expect_failures = [var.zones]
}

run "a_zone_of_another_region_is_refused" {
  command = plan
  variables { zones = ["europe-west3-a", "europe-west4-b"] }
  expect_failures = [var.zones]
}

run "a_name_that_google_refuses_is_refused" {
  command = plan
  variables { name = "EKM" }
  expect_failures = [var.name]
}
