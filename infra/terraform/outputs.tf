output "bucket_url" {
  description = "Root of data.root and run.storage."
  value       = "s3://${aws_s3_bucket.data.bucket}"
}

output "region" {
  value = var.region
}

output "head_instance_profile" {
  value = aws_iam_instance_profile.head.name
}

output "node_instance_profile" {
  value = aws_iam_instance_profile.node.name
}

output "security_group_id" {
  value = aws_security_group.cluster.id
}

output "machine_image_id" {
  value = data.aws_ami.machine.id
}

output "image_repository_url" {
  description = "Where to push the images of infra/docker; null without image_repository."
  value       = one(aws_ecr_repository.image[*].repository_url)
}

output "cluster_yaml_edits" {
  description = "The lines of cluster.yaml that are marked EDIT and known here: terraform output -raw cluster_yaml_edits"
  value       = <<-EOT
    cluster_name: ${var.cluster_name}
    provider:
      region: ${var.region}
      availability_zone: ${var.region}a
    docker:
      head_image: ${coalesce(one(aws_ecr_repository.image[*].repository_url), "registry.example.com/segtrain")}:0.1.0-ray2.60.0-cpu@sha256:EDIT
      worker_image: ${coalesce(one(aws_ecr_repository.image[*].repository_url), "registry.example.com/segtrain")}:0.1.0-ray2.60.0-cu125@sha256:EDIT
    available_node_types:
      head:
        node_config:
          ImageId: ${data.aws_ami.machine.id}
          SecurityGroupIds: [${aws_security_group.cluster.id}]
          IamInstanceProfile: {Name: ${aws_iam_instance_profile.head.name}}
      gpu_spot, gpu_on_demand and cpu:
        node_config:
          IamInstanceProfile: {Name: ${aws_iam_instance_profile.node.name}}
    initialization_commands:
      - aws ecr get-login-password --region ${var.region} | docker login --username AWS --password-stdin ${split("/", coalesce(one(aws_ecr_repository.image[*].repository_url), "registry.example.com/segtrain"))[0]}
  EOT
}
