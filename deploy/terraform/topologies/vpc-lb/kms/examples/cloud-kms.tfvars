# Keys that Cloud KMS makes, rotates and destroys at the EKM: 'ekm space allow-creation v0/cryptospaces/cloud …' opens the space for it.
server_certificate_files = ["../../example-certificate.pem"]

key_projects = {
  keys-example = {
    key_management_mode = "CLOUD_KMS"
    crypto_space_path   = "v0/cryptospaces/cloud"
    keys = {
      orders = { rotation_period = "7776000s" }
    }
  }
}

# What the network stage writes to network.auto.tfvars.json; here so that the example is whole.
network = {
  suffix                    = "a1"
  location                  = "europe-west3"
  hostname                  = "ekm.example.com"
  service_directory_service = "projects/net-example/locations/europe-west3/namespaces/ekm-a1/services/ekm"
  key_projects              = ["keys-example"]
}
