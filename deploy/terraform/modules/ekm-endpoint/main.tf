# Where Cloud KMS finds the EKM inside a VPC, and who may look: one Service Directory service with exactly one endpoint.

resource "google_service_directory_namespace" "ekm" {
  project      = var.vpc_project.id
  location     = var.location
  namespace_id = var.name
}

resource "google_service_directory_service" "ekm" {
  namespace  = google_service_directory_namespace.ekm.id
  service_id = "ekm"
}

# One and no more: Cloud KMS takes any endpoint for a request, and checks the health of none.
resource "google_service_directory_endpoint" "ekm" {
  service     = google_service_directory_service.ekm.id
  endpoint_id = "vip"
  address     = var.address
  port        = var.port

  # Service Directory's own way to write a network: the project's number, and locations/global.
  network = "projects/${var.vpc_project.number}/locations/global/networks/${var.network_name}"
}

locals {
  # No role comes with the agents. They need these also where the keys are in the VPC's own project.
  agent_roles = {
    for pair in setproduct(var.key_project_numbers, ["servicedirectory.viewer", "servicedirectory.pscAuthorizedService"]) :
    "${pair[0]}/${pair[1]}" => { number = pair[0], role = pair[1] }
  }
}

resource "google_project_iam_member" "ekm_agents" {
  for_each = local.agent_roles

  project = var.vpc_project.id
  role    = "roles/${each.value.role}"
  member  = "serviceAccount:service-${each.value.number}@gcp-sa-ekms.iam.gserviceaccount.com"
}
