variable "hostname" {
  description = "The EKM's host name."
  type        = string
}

variable "name" {
  description = "What the check is called."
  type        = string
}

variable "notification_channels" {
  description = "Ids of the notification channels that hear of it."
  type        = list(string)
  default     = []
}

variable "port" {
  description = "The port that Cloud KMS calls."
  type        = number
  default     = 443
}

variable "private" {
  description = "Whether to check from inside the VPC. A variable of its own, because a service that is not made yet cannot be told from none."
  type        = bool
}

variable "project" {
  description = "The project of the check and of the VPC network, by id and by number."
  type = object({
    id     = string
    number = string
  })

  validation {
    condition     = can(regex("^[0-9]+$", var.project.number))
    error_message = "project.number is the project's number (gcloud projects describe ID --format='value(projectNumber)'), not its id."
  }
}

variable "service_directory_service" {
  description = "For a private check: the service that the EKM connection names."
  type        = string
  default     = null

  validation {
    condition     = var.private == (var.service_directory_service != null)
    error_message = "A private check needs service_directory_service, the one that the EKM connection names; a public one goes by the host name and takes none."
  }
  validation {
    condition     = var.service_directory_service == null || can(regex("^projects/[^/]+/locations/[^/]+/namespaces/[^/]+/services/[^/]+$", var.service_directory_service))
    error_message = "service_directory_service is projects/PROJECT/locations/LOCATION/namespaces/NAMESPACE/services/SERVICE."
  }
}
