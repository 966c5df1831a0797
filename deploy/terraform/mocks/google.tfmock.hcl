# What the provider would answer, for tests without one: known at plan time, in the forms that other resources depend on.

mock_resource "google_compute_network" {
  defaults = {
    id   = "projects/net-example/global/networks/ekm-a1"
    name = "ekm-a1"
  }
}

mock_resource "google_compute_subnetwork" {
  defaults = { id = "projects/net-example/regions/europe-west3/subnetworks/ekm-a1-proxies" }
}

mock_resource "google_compute_router" {
  defaults = { id = "projects/net-example/regions/europe-west3/routers/ekm-a1" }
}

mock_resource "google_compute_ha_vpn_gateway" {
  defaults = { id = "projects/net-example/regions/europe-west3/vpnGateways/ekm-a1" }
}

mock_resource "google_compute_external_vpn_gateway" {
  defaults = { id = "projects/net-example/global/externalVpnGateways/ekm-a1-peer" }
}

mock_resource "google_compute_interconnect_attachment" {
  defaults = {
    self_link                  = "https://www.googleapis.com/compute/v1/projects/net-example/regions/europe-west3/interconnectAttachments/a"
    cloud_router_ip_address    = "169.254.60.1/29"
    customer_router_ip_address = "169.254.60.2/29"
    pairing_key                = "7e51371e-72a3-40b5-b844-2e3efefaee59/europe-west3/2"
  }
}

mock_resource "google_compute_health_check" {
  defaults = { id = "projects/net-example/global/healthChecks/ekm" }
}

mock_resource "google_compute_region_health_check" {
  defaults = { id = "projects/net-example/regions/europe-west3/healthChecks/ekm-a1-ready" }
}

mock_resource "google_compute_network_endpoint_group" {
  defaults = { id = "projects/net-example/zones/europe-west3-a/networkEndpointGroups/ekm" }
}

mock_resource "google_compute_network_endpoint" {
  defaults = { id = "projects/net-example/zones/europe-west3-a/networkEndpoints/ekm" }
}

mock_resource "google_compute_backend_service" {
  defaults = { id = "projects/net-example/global/backendServices/ekm-a1" }
}

mock_resource "google_compute_region_backend_service" {
  defaults = { id = "projects/net-example/regions/europe-west3/backendServices/ekm-a1" }
}

mock_resource "google_compute_target_tcp_proxy" {
  defaults = { id = "projects/net-example/global/targetTcpProxies/ekm-a1" }
}

mock_resource "google_compute_global_address" {
  defaults = {
    id      = "projects/net-example/global/addresses/ekm-a1"
    address = "203.0.113.80"
  }
}

mock_resource "google_compute_address" {
  defaults = {
    id      = "projects/net-example/regions/europe-west3/addresses/ekm-a1"
    address = "10.128.10.10"
  }
}

mock_resource "google_compute_global_forwarding_rule" {
  defaults = { id = "projects/net-example/global/forwardingRules/ekm-a1" }
}

mock_resource "google_compute_forwarding_rule" {
  defaults = { id = "projects/net-example/regions/europe-west3/forwardingRules/ekm-a1" }
}

mock_resource "google_compute_instance_template" {
  defaults = { self_link_unique = "https://www.googleapis.com/compute/v1/projects/net-example/global/instanceTemplates/ekm?uniqueId=1" }
}

mock_resource "google_compute_region_instance_group_manager" {
  defaults = { instance_group = "projects/net-example/regions/europe-west3/instanceGroups/ekm" }
}

mock_resource "google_service_account" {
  defaults = { email = "ekm-a1-proxy@net-example.iam.gserviceaccount.com" }
}

mock_resource "google_service_directory_namespace" {
  defaults = { id = "projects/net-example/locations/europe-west3/namespaces/ekm-a1" }
}

mock_resource "google_service_directory_service" {
  defaults = { id = "projects/net-example/locations/europe-west3/namespaces/ekm-a1/services/ekm" }
}

mock_resource "google_kms_ekm_connection" {
  defaults = { id = "projects/keys-example/locations/europe-west3/ekmConnections/ekm-a1" }
}

mock_resource "google_kms_key_ring" {
  defaults = { id = "projects/keys-example/locations/europe-west3/keyRings/ekm-a1" }
}

mock_resource "google_kms_crypto_key" {
  defaults = { id = "projects/keys-example/locations/europe-west3/keyRings/ekm-a1/cryptoKeys/orders" }
}

mock_resource "google_kms_crypto_key_version" {
  defaults = { name = "projects/keys-example/locations/europe-west3/keyRings/ekm-a1/cryptoKeys/orders/cryptoKeyVersions/3" }
}

mock_resource "google_monitoring_custom_service" {
  defaults = { service_id = "ekm-a1" }
}

mock_resource "google_monitoring_slo" {
  defaults = { name = "projects/1/services/ekm-a1/serviceLevelObjectives/availability" }
}

mock_resource "google_monitoring_uptime_check_config" {
  defaults = { uptime_check_id = "ekm-a1-ekm-answers-x1" }
}
