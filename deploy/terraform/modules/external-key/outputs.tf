output "keys" {
  description = "The keys' ids, by name, for services that take a CMEK."
  value       = { for name, key in google_kms_crypto_key.this : name => key.id }
}

output "versions" {
  description = "The versions' resource names, by KEY/LABEL."
  value       = { for label, version in google_kms_crypto_key_version.this : label => version.name }
}

output "set_primary_commands" {
  description = "What makes a version its key's primary one; no resource does. A key without a primary version encrypts nothing."
  value = {
    for label, version in google_kms_crypto_key_version.this : label => join(" ", [
      "gcloud kms keys update ${local.versions[label].key} --keyring ${var.key_ring} --location ${var.location} --project ${var.project_id}",
      "--primary-version ${reverse(split("/", version.name))[0]}",
    ]) if var.keys[local.versions[label].key].purpose == "ENCRYPT_DECRYPT"
  }
}
