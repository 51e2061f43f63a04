"""A course in Docker's fundamentals, in our program's name: each command line, and what the course says it does.

Run from the first to the last by test_course.py, printed by `make docs` into docs/docker.md. `registry.example` stands
for the registry. Data only.
"""

from typing import Final

COURSE: Final[tuple[tuple[str, str], ...]] = (
    ("pull registry.example/nginx", "the image is fetched, its digest printed"),
    ("pull registry.example/busybox", "the same for another one"),
    ("images", "both are listed"),
    ("run -d --name web1 -p 8081:80 registry.example/nginx", "nginx answers on port 8081; the id is printed"),
    (
        "run -d --name web2 -p 8082:80 registry.example/nginx",
        "a second container of the image answers on 8082",
    ),
    ("ps", "both run, with their ports"),
    ("port web1", "where port 80 is published"),
    ("logs web1", "what nginx wrote"),
    ("inspect --format '{{.State.Status}}' web1", "one field of what is known of it"),
    (
        "cp ./page.html web1:/var/www/html/index.html",
        "port 8081 answers with the new page, port 8082 with the old one",
    ),
    ("cp web1:/etc/nginx/nginx.conf ./nginx.conf", "the file comes out"),
    (
        "run --rm -e GREETING=hello registry.example/busybox sh -c 'echo $GREETING'",
        "a variable reaches the program",
    ),
    (
        "run -d --name box --memory 64m --cpus 0.5 registry.example/busybox "
        "sh -c 'trap \"echo bye; exit 3\" TERM; echo ready; while :; do usleep 20000; done'",
        "the kernel limits it to 64 MiB and half a CPU",
    ),
    ("logs -f box", "follows what it writes until it ends"),
    ("exec box sh -c 'echo inside > /note; id -u'", "a second program runs in it"),
    ("exec -it box sh", "a shell on a terminal"),
    ("top box", "its processes"),
    ("stats --no-stream box", "what it uses now"),
    ("diff box", "the file that was written in it"),
    ("stop box", "it gets SIGTERM and time to end in its own way"),
    ("ps -a", "it is still there, with its exit code"),
    ("wait box", "prints the exit code"),
    ("start box", "it runs again, and has its files"),
    ("pause box", "it stands still"),
    ("unpause box", "it goes on"),
    ("update --memory 96m box", "the limit in the kernel changes, the process stays"),
    ("restart -t 1 box", "it runs as a new process, and has its files"),
    ("kill -s KILL web2", "it ends at once, its port is free"),
    ("rm web2", "it is gone"),
    ("rm box", "is refused while it runs"),
    ("rm -f box", "stops and removes it"),
    ("create --name later registry.example/busybox true", "it is made and does not run"),
    ("container ls -a -q", "ids of all, also of those that do not run"),
    ("volume create data", "a place for data"),
    ("volume inspect data", "where it is"),
    (
        "run --rm -v data:/data registry.example/busybox sh -c 'echo kept > /data/file'",
        "a container writes to it",
    ),
    (
        "run --rm -v data:/data registry.example/busybox cat /data/file",
        "the next one finds what the first one wrote",
    ),
    (
        "run --rm -v data:/data:ro registry.example/busybox touch /data/other",
        "is refused: the mount is read-only",
    ),
    (
        "run --rm -v $PWD:/host:ro registry.example/busybox cat /host/page.html",
        "a directory of the host is seen",
    ),
    ("run --rm -v $PWD:/host:ro registry.example/busybox touch /host/other", "and can't be written to"),
    ("run -d --name db -v dbdata:/data registry.example/redis", "redis runs, its data in a volume"),
    ("exec db redis-cli set answer 42", "a client in the same container"),
    ("rm -f db", "the container goes, the volume stays"),
    ("run -d --name db -v dbdata:/data registry.example/redis", "another one takes over the data"),
    ("exec db redis-cli get answer", "42"),
    (
        "run --rm registry.example/redis redis-cli -h db get answer",
        "containers find each other by name",
    ),
    ("volume ls", "both volumes"),
    ("volume rm dbdata", "is refused while a container mounts it"),
    ("tag registry.example/busybox localhost/mybox:v1", "a second name of the image"),
    ("image inspect localhost/mybox:v1", "the same image under both names"),
    ("rmi localhost/mybox:v1", "takes the name away again"),
    ("rmi registry.example/nginx", "is refused while a container uses it"),
    ("events -n 100", "what happened"),
    ("system df", "what takes room, and what of it can be had back"),
    ("kill db", "the database is stopped the hard way"),
    ("rm db", "and removed"),
    ("rm -f web1 later", "all containers are gone"),
    (
        "image prune -f",
        "images that were pulled by name stay; one that `run` fetched, and nothing uses, goes",
    ),
    ("image prune -a -f", "images that nothing uses go"),
    ("volume prune -f", "volumes with a name stay"),
    ("volume rm dbdata", "now it goes"),
    ("volume prune -a -f", "and so does the other one"),
    ("container prune -f", "nothing is left to remove"),
    ("system prune -f", "the same of everything"),
    ("images", "no image is left"),
    ("version", "the version"),
    ("doctor", "what the host offers"),
)
