"""The test bed: a Debian with systemd and a real llama-server, built once and booted in a container.

Standard library only, Python 3.9 or later: it runs on the host, before anything is installed.

    recipe     what is in the bed
    host       what the bed needs of the host, and what the host knows (mirror, proxies, pip's settings)
    build      the recipe made a root directory, cached
    keeper     the process that owns the mounts of a booted bed
    processes  what /proc says; how nothing is left over
    groups     control groups of beds
    container  boots, enters and ends beds
    files      copies files in and out
    package    llamad's .deb, built in a bed and cached
    suite      packaging/test
    demo       packaging/demo
    cli        the command line
"""
