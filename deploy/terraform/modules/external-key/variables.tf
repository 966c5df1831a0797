variable "connection_id" {
  description = "For EXTERNAL_VPC: the EKM connection, projects/PROJECT/locations/LOCATION/ekmConnections/NAME."
  type        = string
  default     = null

  validation {
    condition     = var.protection_level == "EXTERNAL_VPC" || var.connection_id == null
    error_message = "EXTERNAL keys are called at their URI over the internet and take no connection_id. For keys behind a connection set protection_level EXTERNAL_VPC."
  }
}

variable "hostname" {
  description = "For EXTERNAL: the EKM's public host name. Its certificate has to be publicly trusted: nothing is pinned on this way."
  type        = string
  default     = null

  validation {
    condition     = (var.protection_level == "EXTERNAL") == (var.hostname != null)
    error_message = "EXTERNAL keys need the EKM's hostname; EXTERNAL_VPC keys have it in their connection."
  }
  validation {
    condition     = var.hostname == null || can(regex("^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", var.hostname))
    error_message = "Give the host name alone, in lower case: no https://, no port, no path."
  }
}

variable "key_management_mode" {
  description = "The connection's: MANUAL, or CLOUD_KMS if Cloud KMS makes the keys at the EKM."
  type        = string
  default     = "MANUAL"

  validation {
    condition     = contains(["MANUAL", "CLOUD_KMS"], var.key_management_mode)
    error_message = "key_management_mode is MANUAL or CLOUD_KMS."
  }
  validation {
    condition     = var.key_management_mode == "MANUAL" || var.protection_level == "EXTERNAL_VPC"
    error_message = "Cloud KMS makes keys at the EKM only over a connection: key_management_mode CLOUD_KMS needs protection_level EXTERNAL_VPC."
  }
}

variable "key_ring" {
  description = "The key ring's name. It stays taken for ever, so it should tell this deployment from others."
  type        = string

  validation {
    condition     = can(regex("^[a-zA-Z0-9_-]{1,63}$", var.key_ring))
    error_message = "A key ring's name has letters, digits, hyphens and underscores, 63 characters at most."
  }
}

variable "keys" {
  description = <<-EOT
    Keys by name. versions: by a label of yours, each with the path of its key at the EKM, such as v0/keys/orders, as 'ekm key show' prints it.
    rotation_period ("7776000s") is for symmetric keys of CLOUD_KMS only.
  EOT
  type = map(object({
    purpose                    = optional(string, "ENCRYPT_DECRYPT")
    algorithm                  = optional(string, "EXTERNAL_SYMMETRIC_ENCRYPTION")
    rotation_period            = optional(string)
    destroy_scheduled_duration = optional(string, "2592000s")
    labels                     = optional(map(string), {})
    versions = optional(map(object({
      path    = string
      enabled = optional(bool, true)
    })), {})
  }))
  default  = {}
  nullable = false

  validation {
    condition = alltrue([
      for key in values(var.keys) : key.rotation_period == null || (var.key_management_mode == "CLOUD_KMS" && key.purpose == "ENCRYPT_DECRYPT")
    ])
    error_message = "Cloud KMS cannot rotate a key that is made by hand at the EKM, nor a signing key: leave rotation_period out, rotate at the EKM ('ekm key rotate'), or use CLOUD_KMS."
  }
  validation {
    condition     = alltrue([for key in values(var.keys) : key.rotation_period == null || can(regex("^[0-9]{5,}s$", key.rotation_period))])
    error_message = "rotation_period is in seconds, a day at least: \"7776000s\" is 90 days."
  }
  validation {
    condition     = alltrue([for key in values(var.keys) : can(regex("^[0-9]{5,}s$", key.destroy_scheduled_duration))])
    error_message = "destroy_scheduled_duration is in seconds, a day at least: \"2592000s\" is 30 days, in which a destruction can be taken back."
  }
  validation {
    condition     = var.key_management_mode == "MANUAL" || alltrue([for key in values(var.keys) : length(key.versions) == 0])
    error_message = "With CLOUD_KMS Cloud KMS makes the versions, and their paths: leave versions out."
  }
  validation {
    condition = alltrue([
      for key in values(var.keys) : contains(lookup({
        ENCRYPT_DECRYPT = ["EXTERNAL_SYMMETRIC_ENCRYPTION"]
        ASYMMETRIC_SIGN = [
          "EC_SIGN_P256_SHA256", "EC_SIGN_P384_SHA384",
          "RSA_SIGN_PSS_2048_SHA256", "RSA_SIGN_PSS_3072_SHA256", "RSA_SIGN_PSS_4096_SHA256", "RSA_SIGN_PSS_4096_SHA512",
          "RSA_SIGN_PKCS1_2048_SHA256", "RSA_SIGN_PKCS1_3072_SHA256", "RSA_SIGN_PKCS1_4096_SHA256", "RSA_SIGN_PKCS1_4096_SHA512",
        ]
      }, key.purpose, []), key.algorithm)
    ])
    error_message = "A key is ENCRYPT_DECRYPT with EXTERNAL_SYMMETRIC_ENCRYPTION, or ASYMMETRIC_SIGN with one of the EKM's ten algorithms (docs/signing.md)."
  }
  validation {
    condition = alltrue(flatten([
      for key in values(var.keys) : [for version in values(key.versions) : can(regex("^v0(/[A-Za-z0-9_.~@+=-]+)+$", version.path))]
    ]))
    error_message = "A version's path is the key's path at the EKM and nothing else, such as v0/keys/orders: no https://, no host, no slash before it, no :wrap behind it."
  }
  validation {
    condition = alltrue([
      for key in values(var.keys) : key.purpose != "ASYMMETRIC_SIGN" || length(distinct([for version in values(key.versions) : version.path])) == length(key.versions)
    ])
    error_message = "Two versions of a signing key have the same path. Each has a public key of its own, so each needs a key of its own at the EKM."
  }
}

variable "location" {
  description = "Where the keys are. EXTERNAL_VPC: a region, the connection's. EXTERNAL: a region, or a multi-region that the EKM is near to as a whole."
  type        = string

  validation {
    condition     = var.protection_level != "EXTERNAL_VPC" || can(regex("^[a-z]+-[a-z]+[0-9]+$", var.location))
    error_message = "EXTERNAL_VPC keys live in a region, such as europe-west3, and not in a multi-region. Take EXTERNAL (topology internet-lb) for multi-region keys."
  }
  validation {
    condition     = !contains(["global", "nam-eur-asia1"], var.location)
    error_message = "Cloud EKM has no keys in global or nam-eur-asia1: no EKM is near to all of it. Take a region, or a smaller multi-region such as eur3."
  }
}

variable "project_id" {
  description = "The key project."
  type        = string
}

variable "protection_level" {
  description = "EXTERNAL_VPC: through a connection. EXTERNAL: over the internet."
  type        = string

  validation {
    condition     = contains(["EXTERNAL", "EXTERNAL_VPC"], var.protection_level)
    error_message = "protection_level is EXTERNAL or EXTERNAL_VPC; other keys are not at an EKM."
  }
}
