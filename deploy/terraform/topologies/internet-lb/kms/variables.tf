variable "key_projects" {
  description = "Key projects by id; keys: see modules/external-key."
  type = map(object({
    notification_channels = optional(list(string), [])
    keys = optional(map(object({
      purpose                    = optional(string, "ENCRYPT_DECRYPT")
      algorithm                  = optional(string, "EXTERNAL_SYMMETRIC_ENCRYPTION")
      rotation_period            = optional(string)
      destroy_scheduled_duration = optional(string, "2592000s")
      labels                     = optional(map(string), {})
      versions = optional(map(object({
        path    = string
        enabled = optional(bool, true)
      })), {})
    })), {})
  }))
}

variable "location" {
  description = "A multi-region such as eur3, if the EKM is near to all regions in it, or a region."
  type        = string
}

variable "network" {
  description = "The network stage's output for_kms, from network.auto.tfvars.json."
  type = object({
    suffix   = string
    hostname = string
  })
}
