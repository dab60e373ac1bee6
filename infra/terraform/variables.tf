variable "region" {
  description = "AWS region of the bucket and of the machines; the same, or every epoch pays for traffic between regions."
  type        = string
}

variable "bucket" {
  description = "Name of the bucket for data sets and runs; new, and unique in all of S3."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "A bucket's name has 3 to 63 lower-case letters, digits and hyphens."
  }
}

variable "ssh_cidr" {
  description = "From where the machines may be reached by SSH, such as 203.0.113.7/32; the only way in."
  type        = string

  validation {
    condition     = can(cidrhost(var.ssh_cidr, 0)) && try(tonumber(split("/", var.ssh_cidr)[1]) >= 8, false)
    error_message = "Give an IPv4 range of your own such as 203.0.113.7/32; /8 is the widest that is taken."
  }
}

variable "cluster_name" {
  description = "cluster_name of cluster.yaml: the head may launch and end machines of this cluster only."
  type        = string
  default     = "segtrain"
}

variable "vpc_id" {
  description = "VPC of the machines; the region's default VPC if null."
  type        = string
  default     = null
}

variable "image_repository" {
  description = "Name of a private image repository (ECR) to make, which the machines may pull from; none if null."
  type        = string
  default     = null
}

variable "old_versions_days" {
  description = "So long what was overwritten or deleted, such as old checkpoints, can still be had back."
  type        = number
  default     = 7
}

variable "machine_image" {
  description = "Name pattern of the machine image of all nodes, of which the newest is looked up: it needs Docker, NVIDIA's driver and container runtime, and the AWS command line."
  type        = string
  default     = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *"
}

variable "destroy_data" {
  description = "Whether `terraform destroy` deletes a bucket that still holds something; otherwise it refuses."
  type        = bool
  default     = false
}
