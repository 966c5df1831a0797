# Keys in a multi-region, made at the EKM: 'ekm key create v0/keys/orders …'.
location = "eur3"

key_projects = {
  keys-example = {
    keys = {
      orders = { versions = { first = { path = "v0/keys/orders" } } }
    }
  }
}

# What the network stage writes to network.auto.tfvars.json; here so that the example is whole.
network = {
  suffix   = "a1"
  hostname = "ekm.example.com"
}
