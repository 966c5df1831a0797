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
  description = "For a check inside the VPC: the service that the EKM connection names. Without it the check is public."
  type        = string
  default     = null

  validation {
    condition     = var.service_directory_service == null || can(regex("^projects/[^/]+/locations/[^/]+/namespaces/[^/]+/services/[^/]+$", var.service_directory_service))
    error_message = "service_directory_service is projects/PROJECT/locations/LOCATION/namespaces/NAMESPACE/services/SERVICE."
  }
}
