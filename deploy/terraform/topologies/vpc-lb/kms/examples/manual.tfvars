# Keys that were made at the EKM: 'ekm key create v0/keys/orders …'.
server_certificate_files = ["../../example-certificate.pem"]

key_projects = {
  keys-example = {
    keys = {
      orders = { versions = { first = { path = "v0/keys/orders" } } }
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
